//! Waves: so many requests at once; when all have ended, the next so many.

use std::rc::Rc;
use std::time::Instant;

use tokio::task::JoinSet;

use super::session::{Opening, Start};
use super::{Phase, Shared, Started};
use crate::client::Connection;
use crate::plan::Waves;

/// Sends one wave after another until there is none left, the next would be more than the limit, or the run ends.
pub async fn run(shared: &Rc<Shared>, waves: &Waves) -> Started {
    let shard = shared.job.shard;
    let limit = shared.job.limits.requests;
    let mut slots: Vec<Option<Connection>> = Vec::new();
    let mut next = 0;
    for &size in &waves.sizes {
        if next + size as u64 > limit {
            break;
        }
        let size = shard.part(size);
        shared.live.users.set(Some(size));
        slots.resize_with(size.max(slots.len()), || None);
        let numbers = next..next + size as u64;
        let openings: Vec<Opening> =
            numbers.map(|n| shared.open(n * u64::from(shard.of) + u64::from(shard.index))).collect();
        let mut openings = openings.into_iter();
        // When all are ready to be sent.
        let intended = Instant::now();
        let mut tasks = JoinSet::new();
        for (user, mut slot) in slots.drain(..size).enumerate() {
            let shared = Rc::clone(shared);
            let opening = openings.next();
            tasks.spawn_local(async move {
                let start = Start { user: user as u32, intended: Some(intended) };
                if let Some(opening) = opening {
                    shared.perform(&mut slot, opening, start).await;
                }
                slot
            });
        }
        next += size as u64;
        slots.extend(tasks.join_all().await);
        let ends = tokio::time::timeout(waves.pause, shared.reaches(Phase::Ending)).await.is_ok();
        if ends || shared.phase() > Phase::Running {
            return Started { dropped_us: Vec::new(), all: false };
        }
    }
    Started { dropped_us: Vec::new(), all: true }
}
