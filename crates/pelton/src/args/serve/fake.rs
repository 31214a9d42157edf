//! What the model that computes nothing takes its time for.

use std::time::Duration;

use clap::Args;

use crate::args::duration::duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "The fake model")]
pub struct FakeArgs {
    /// With `--model-id fake`: time of each step.
    #[arg(long, value_parser = duration, default_value = "0ms", value_name = "DURATION")]
    pub fake_step_cost: Duration,

    /// With `--model-id fake`: time of each token in a step.
    #[arg(long, value_parser = duration, default_value = "0ms", value_name = "DURATION")]
    pub fake_token_cost: Duration,
}
