//! A page that starts, steers and shows runs, served to browsers on this machine by threads of its own.

mod guard;
mod order;
mod ramp;
mod routes;
mod state;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use pelton_bench::results::Results;
use pelton_bench::{BenchError, BenchPlan};
use tokio::sync::oneshot;

use crate::looks::{self, Look, Looker};
use crate::tally::About;
pub use order::Form;
pub use routes::Download;
use routes::Site;
use state::Shared;

/// Time between two changes of the number of users.
const STEP: Duration = Duration::from_millis(100);

/// How long open pages may take to hear that the process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address cannot be used.
    #[error("the page cannot be served at {address}: {source}")]
    Address {
        /// As given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The system gives no thread.
    #[error("the page cannot be served: {0}")]
    Thread(io::Error),
}

/// The page, from [`open`](Self::open) until it is dropped.
#[derive(Debug)]
pub struct WebPage {
    address: SocketAddr,
    shared: Arc<Shared>,
    looks: SyncSender<Look>,
    /// Dropped, it ends the server.
    end: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl WebPage {
    /// Serves the page at `address`, `host:port`; port 0 takes a free one. Nothing runs until someone starts it there. `plan` is what is
    /// measured, but for its load; `form` is what the start form begins with; `further` are downloads beside JSON and CSV.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn open(address: &str, plan: &BenchPlan, form: Form, further: Vec<Download>) -> Result<Self, WebError> {
        let wrong = |source| WebError::Address { address: address.to_owned(), source };
        let resolved: Vec<SocketAddr> = address.to_socket_addrs().map_err(wrong)?.collect();
        let listener = std::net::TcpListener::bind(resolved.as_slice()).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        let bound = listener.local_addr().map_err(wrong)?;
        let name =
            address.rsplit_once(':').map(|(host, _)| host).filter(|host| host.parse::<std::net::IpAddr>().is_err());

        let shared = Arc::new(Shared::new(About::of(plan), form));
        let router = Site::new(Arc::clone(&shared), further, name.map(str::to_owned)).router();
        let (end, ended) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WebError::Thread)?;
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let of_server = Arc::clone(&shared);
        let serving = thread("live-page").spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, router) => {}
                    () = leave_at_interrupt(&of_server) => {}
                    // Open pages hear that the process ends.
                    _ = ended => tokio::time::sleep(LAST_WORDS).await,
                }
            });
            runtime.shutdown_background();
        });
        let (looks, seen) = looks::line();
        let of_numbers = Arc::clone(&shared);
        let counting = thread("live-numbers").spawn(move || count(&seen, &of_numbers));
        let threads = vec![serving.map_err(WebError::Thread)?, counting.map_err(WebError::Thread)?];
        Ok(Self { address: bound, shared, looks, end: Some(end), threads })
    }

    /// Where it is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Runs what the page orders, one run after another, on the calling thread: `plan` with another load. After an interrupt, or
    /// [`leave`](Self::leave), it returns. `command` is stored in results; `told` hears what each run left behind, or why there was none.
    pub fn run(&self, plan: &BenchPlan, command: &[String], told: &mut dyn FnMut(Result<&Results, &BenchError>)) {
        while let Some((order, control)) = self.shared.wait_for_order() {
            let mut looker = Looker::new(self.looks.clone());
            let result = pelton_bench::run(&order.plan(plan), command.to_vec(), &mut looker, &control).map(Arc::new);
            told(result.as_deref());
            // Behind all looks of the run.
            let _ = self.looks.send(Look::Over(result.map_err(|error| error.to_string())));
        }
    }

    /// Ends waiting, and the run that goes on.
    pub fn leave(&self) {
        self.shared.leave();
    }
}

impl Drop for WebPage {
    fn drop(&mut self) {
        self.shared.leave();
        drop(self.end.take());
        // Ends the thread of the numbers, of whose line this is one end.
        let _ = self.looks.send(Look::Leave);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been told by the hook.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, router: axum::Router) {
    // Both fail only if the system withdraws the socket; then there is no page, and runs go on.
    if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
        let _ = axum::serve(listener, router).await;
    }
    std::future::pending::<()>().await;
}

/// Makes an interrupt end the run that goes on, and the process after it; the second one cuts what still runs.
async fn leave_at_interrupt(shared: &Shared) {
    // Without signals there is no interrupt to wait for.
    while pelton_bench::interrupt::interrupted().await.is_ok() {
        shared.leave();
    }
    std::future::pending::<()>().await;
}

/// Takes in what runs tell, and changes the number of users on the way.
fn count(looks: &Receiver<Look>, shared: &Shared) {
    loop {
        match looks.recv_timeout(STEP) {
            Ok(Look::Leave) => return,
            Ok(Look::Over(result)) => shared.over(result),
            Ok(look) => shared.look(Some(look)),
            Err(RecvTimeoutError::Timeout) => shared.look(None),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
