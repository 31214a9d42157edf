//! The number of files this process may have open, which every connection counts into.

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::BenchError;

/// Files open beside connections: standard streams, the runtime's, results.
const OTHERS: u64 = 64;

/// Raises the soft limit to the hard one, and refuses a test that needs more connections than that.
pub fn allow(connections: usize) -> Result<(), BenchError> {
    let mut limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum;
    if limit.current != hard {
        limit.current = hard;
        // Where it cannot be raised, the old one is compared below.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    // No number is no limit.
    let Some(allowed) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    check(connections as u64, allowed)
}

fn check(connections: u64, allowed: u64) -> Result<(), BenchError> {
    let needed = connections + OTHERS;
    if needed > allowed {
        return Err(BenchError::Plan(format!(
            "{connections} requests at once need {needed} open files, the system allows {allowed}: raise the hard limit (ulimit -Hn), or \
             share the load among processes (--shard)"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_low_a_limit_is_told_before_the_run() {
        assert!(check(960, 1024).is_ok());
        let error = check(961, 1024).expect_err("one too many").to_string();
        assert!(error.contains("961 requests at once need 1025 open files, the system allows 1024"), "{error}");
    }
}
