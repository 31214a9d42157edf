//! The text threads: bounded, and unharmed by what runs on them.

use pelton_text::{TextError, TextModel, TextPool};
use std::future::Future;
use std::pin::pin;
use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn jobs_run_with_the_model() {
    let pool = TextPool::new(TextModel::bytes(), 2, 8);
    let tokens = pool.run(|model| model.encode("hé", true)).await.expect("the job runs");
    assert_eq!(tokens.expect("the text is encoded"), [104, 0xC3, 0xA9]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_drains_again() {
    let pool = TextPool::new(TextModel::bytes(), 1, 1);
    let (started, is_started) = oneshot::channel();
    let (release, is_released) = mpsc::channel::<()>();
    let running = tokio::spawn({
        let pool = pool.clone();
        async move {
            pool.run(move |_| {
                started.send(()).expect("the test waits");
                is_released.recv_timeout(LONG).expect("the test releases the job");
            })
            .await
        }
    });
    timeout(LONG, is_started).await.expect("the job starts").expect("the job says so");

    let mut waiting = pin!(pool.run(|_| 7));
    std::future::poll_fn(|context| {
        assert!(waiting.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    let refused = pool.run(|_| ()).await;
    assert!(matches!(refused, Err(TextError::Busy { limit: 1 })), "{refused:?}");

    release.send(()).expect("the job waits");
    assert_eq!(timeout(LONG, waiting).await.expect("the queue drains").expect("the job runs"), 7);
    running.await.expect("the task ends").expect("the job ends");
    assert_eq!(pool.run(|_| 8).await.expect("there is room again"), 8);
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_job_alone() {
    let pool = TextPool::new(TextModel::bytes(), 1, 4);
    for _ in 0..3 {
        let result = pool.run(|_| -> () { std::panic::resume_unwind(Box::new("a job went wrong")) }).await;
        assert!(matches!(result, Err(TextError::Panicked)));
    }
    assert_eq!(pool.run(|_| 1).await.expect("the thread is still there"), 1);
}

#[tokio::test]
async fn an_abandoned_job_does_not_run() {
    let pool = TextPool::new(TextModel::bytes(), 1, 4);
    let (started, is_started) = oneshot::channel();
    let (release, is_released) = mpsc::channel::<()>();
    let running = tokio::spawn({
        let pool = pool.clone();
        async move {
            pool.run(move |_| {
                started.send(()).expect("the test waits");
                is_released.recv_timeout(LONG).expect("the test releases the job");
            })
            .await
        }
    });
    timeout(LONG, is_started).await.expect("the job starts").expect("the job says so");

    let (ran, has_run) = mpsc::channel();
    {
        let mut abandoned = pin!(pool.run(move |_| ran.send(())));
        std::future::poll_fn(|context| {
            assert!(abandoned.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }
    release.send(()).expect("the job waits");
    running.await.expect("the task ends").expect("the job ends");
    pool.run(|_| ()).await.expect("jobs run in order");
    assert_eq!(has_run.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}
