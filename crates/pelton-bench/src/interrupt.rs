//! The wish to end early: Ctrl-C from a person, SIGTERM from a system that wants its machine back. Both get the report so far.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGINT or SIGTERM. Must be called inside a runtime.
///
/// # Errors
/// The system hands out no signals: there is nothing to wait for.
pub async fn interrupted() -> std::io::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
