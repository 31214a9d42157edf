//! The closed loop: a pool of virtual users that follows a wished number, which may change at any time.
//!
//! Constant, ramping and steered numbers differ only in who changes the wish. A user beyond the wish ends after the request it has under
//! way; one that is wished again goes on with what is left of its own number of requests.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::session::Start;
use super::{Job, Phase, Shared, Started};
use crate::client::{Client, Connection};
use crate::plan::{MAX_REQUESTS, MAX_USERS, Shard, Stage, Users};
use crate::watch::Control;

/// First wait of a virtual user after a failed request; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Longest such wait.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Connections made at once: more would overflow the server's queue of connections, and wait for seconds to be tried again.
const CONNECTING: usize = 256;

/// How many users there shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    /// Of this shard.
    users: usize,
    /// Whether it cannot change any more.
    is_last: bool,
}

/// One virtual user as the pool knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct User {
    is_running: bool,
    /// Requests it has made.
    made: u64,
}

/// Users before the run begins.
pub struct Pool {
    users: Users,
    each: Option<u64>,
    /// For the first users, made before the run begins. What failed here fails again, and is recorded, in the run.
    connections: Vec<Option<Connection>>,
}

impl Pool {
    /// Makes a connection for each user that the run begins with.
    pub async fn prepare(job: &Job, users: &Users, each: Option<u64>) -> Self {
        let first = match *users {
            Users::Constant(n) | Users::Ramping { from: n, .. } | Users::Steered { from: n } => job.shard.part(n),
        };
        let mut opening = JoinSet::new();
        let mut connections = Vec::new();
        for _ in 0..first {
            if opening.len() >= CONNECTING {
                connections.extend(opening.join_next().await.and_then(Result::ok));
            }
            opening.spawn_local(connect(Rc::clone(&job.client), job.timeout));
        }
        connections.extend(opening.join_all().await);
        Self { users: users.clone(), each, connections }
    }

    /// Lets users send requests until there is nothing left to start or the run ends, and waits for what was started.
    pub async fn run(self, shared: &Rc<Shared>, control: &Control) -> Started {
        let Self { users, each, connections } = self;
        let (wish, wished) = watch::channel(Wish { users: 0, is_last: false });
        let all = tokio::select! {
            all = follow(shared, wished, each, connections) => all,
            never = steer(&users, each, shared, &wish, control) => match never {},
        };
        Started { dropped_us: Vec::new(), all }
    }
}

impl Shard {
    /// This shard's part of `n` things.
    pub(super) fn part(self, n: usize) -> usize {
        let at = |index: u32| n * index as usize / self.of as usize;
        at(self.index + 1) - at(self.index)
    }
}

async fn connect(client: Rc<Client>, timeout: Duration) -> Option<Connection> {
    tokio::time::timeout(timeout, client.target().connect()).await.ok()?.ok()
}

/// Changes the wish as the load says.
async fn steer(
    users: &Users,
    each: Option<u64>,
    shared: &Shared,
    wish: &watch::Sender<Wish>,
    control: &Control,
) -> std::convert::Infallible {
    let (shard, began) = (shared.job.shard, shared.began);
    let set = |users: usize, is_last: bool| wish.send_replace(Wish { users: shard.part(users), is_last });
    match users {
        // Users with a number of requests of their own end with these, and a share without users at once: a hand that may add others would
        // keep the run waiting.
        Users::Constant(n) if each.is_some() || shard != Shard::WHOLE => {
            set(*n, true);
        }
        Users::Constant(n) => {
            set(*n, false);
            // What was said to an earlier run is not meant.
            let mut wishes = control.users();
            while wishes.changed().await.is_ok() {
                let n = wishes.borrow_and_update().unwrap_or(*n).min(MAX_USERS);
                set(n, false);
                shared.live.is_steered.set(true);
            }
        }
        Users::Ramping { from, stages } => {
            let mut steps = ramp_steps(*from, stages).into_iter().peekable();
            set(*from, steps.peek().is_none());
            while let Some((at, n)) = steps.next() {
                tokio::time::sleep_until((began + at).into()).await;
                set(n, steps.peek().is_none());
            }
        }
        Users::Steered { from } => {
            let mut wishes = control.users();
            loop {
                let n = wishes.borrow_and_update().unwrap_or(*from).min(MAX_USERS);
                set(n, false);
                if wishes.changed().await.is_err() {
                    break;
                }
            }
        }
    }
    std::future::pending().await
}

/// When the number of users changes, and to what: the nearest whole number to the line through the stages.
fn ramp_steps(from: usize, stages: &[Stage]) -> Vec<(Duration, usize)> {
    let mut steps: Vec<(Duration, usize)> = Vec::new();
    let (mut began, mut now) = (Duration::ZERO, from);
    for stage in stages {
        let to = stage.target as usize; // Whole and at most `MAX_USERS`.
        let distance = now.abs_diff(to);
        if stage.duration.is_zero() && distance > 0 {
            steps.push((began, to));
        } else {
            // User number `n` of the distance comes or goes where the line passes `n - 1/2`.
            let at = |n: usize| began + stage.duration.mul_f64((n as f64 - 0.5) / distance as f64);
            steps.extend((1..=distance).map(|n| (at(n), if to > now { now + n } else { now - n })));
        }
        (began, now) = (began + stage.duration, to);
    }
    steps
}

/// Lets as many users run as wished. Returns whether there was nothing left to start.
async fn follow(
    shared: &Rc<Shared>,
    mut wished: watch::Receiver<Wish>,
    each: Option<u64>,
    connections: Vec<Option<Connection>>,
) -> bool {
    let shard = shared.job.shard;
    let requests = Rc::new(Requests {
        next: Cell::new(0),
        limit: shard.part(shared.job.limits.requests as usize) as u64,
        most: shard.part(MAX_REQUESTS as usize) as u64,
        least_until: shared.began + shared.job.limits.at_least,
        each: each.unwrap_or(u64::MAX),
    });
    let mut connections = connections.into_iter();
    let mut users: Vec<User> = Vec::new();
    let mut tasks = JoinSet::new();
    loop {
        let wish = *wished.borrow_and_update();
        shared.live.users.set(Some(wish.users));
        let is_running = shared.phase() == Phase::Running;
        let may_start = is_running && requests.are_left();
        if users.len() < wish.users {
            users.resize(wish.users, User::default());
        }
        if may_start {
            for (number, user) in users.iter_mut().enumerate().take(wish.users) {
                if user.is_running || user.made >= requests.each {
                    continue;
                }
                user.is_running = true;
                let connection = connections.next();
                let made = user.made;
                tasks.spawn_local(one_user(
                    Rc::clone(shared),
                    Rc::clone(&requests),
                    wished.clone(),
                    number,
                    made,
                    connection,
                ));
            }
        }
        if tasks.is_empty() && (!may_start || wish.is_last) {
            return is_running;
        }
        tokio::select! {
            Some(Ok((number, made))) = tasks.join_next() => users[number] = User { is_running: false, made },
            Ok(()) = wished.changed() => {}
            () = shared.reaches(Phase::Ending), if is_running => {}
        }
    }
}

/// The requests that all users of a shard take from.
struct Requests {
    next: Cell<u64>,
    /// Of all users together.
    limit: u64,
    /// Before this time only `most` ends them.
    least_until: Instant,
    most: u64,
    /// Of each user.
    each: u64,
}

impl Requests {
    fn are_left(&self) -> bool {
        let next = self.next.get();
        next < self.limit || (next < self.most && Instant::now() < self.least_until)
    }
}

/// Sends one request after another, `made` having been made before, as long as this user is wished. Returns its number and how many
/// it has made then.
async fn one_user(
    shared: Rc<Shared>,
    requests: Rc<Requests>,
    wished: watch::Receiver<Wish>,
    number: usize,
    mut made: u64,
    connection: Option<Option<Connection>>,
) -> (usize, u64) {
    let Shard { index: shard, of } = shared.job.shard;
    let mut slot = match connection {
        Some(connection) => connection,
        None => connect(Rc::clone(&shared.job.client), shared.job.timeout).await,
    };
    let mut pause = FIRST_PAUSE;
    while shared.phase() == Phase::Running
        && requests.are_left()
        && made < requests.each
        && number < wished.borrow().users
    {
        let nth = requests.next.replace(requests.next.get() + 1);
        made += 1;
        // Numbers of all shards together, each used by one of them.
        let index = nth * u64::from(of) + u64::from(shard);
        let user = number as u32 * of + shard;
        if shared.perform(&mut slot, shared.open(index), Start { user, intended: None }).await {
            pause = FIRST_PAUSE;
        } else {
            let _ = tokio::time::timeout(pause, shared.reaches(Phase::Ending)).await;
            pause = (2 * pause).min(MAX_PAUSE);
        }
    }
    (number, made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_step_where_the_line_passes_halves() {
        let stage = |seconds, target| Stage { duration: Duration::from_secs(seconds), target };
        let steps = ramp_steps(1, &[stage(2, 3.0), stage(5, 3.0), stage(0, 7.0), stage(1, 6.0)]);
        let expected = [(500, 2), (1500, 3), (7000, 7), (7500, 6)];
        assert_eq!(steps, expected.map(|(ms, users)| (Duration::from_millis(ms), users)));
    }

    #[test]
    fn shards_together_have_everything() {
        for n in [0, 1, 7, 100] {
            for of in [1, 3, 8] {
                let parts: Vec<usize> = (0..of).map(|index| Shard { index, of }.part(n)).collect();
                assert_eq!(parts.iter().sum::<usize>(), n);
                let most = parts.iter().max().expect("some");
                assert!(parts.iter().all(|part| most - part <= 1), "{parts:?}");
            }
        }
    }
}
