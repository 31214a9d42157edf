//! What Ctrl-C and SIGTERM do to a measurement.

use anyhow::Result;
use pelton_bench::interrupt::interrupted;
use pelton_bench::watch::Control;

/// From now on each interrupt calls [`Control::stop`], so that what was measured is told; after `patience` of them the next one ends the
/// program.
pub fn stop_at_interrupt(control: &Control, patience: u32) -> Result<()> {
    let control = control.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A thread of its own: between runs, and after them, nobody else would hear.
    std::thread::Builder::new().name("interrupts".to_owned()).spawn(move || {
        runtime.block_on(async {
            for _ in 0..patience {
                // Without signals there is no interrupt to wait for.
                if interrupted().await.is_ok() {
                    control.stop();
                }
            }
            if interrupted().await.is_ok() {
                pelton_live::leave_terminal();
                std::process::exit(130);
            }
        });
    })?;
    Ok(())
}
