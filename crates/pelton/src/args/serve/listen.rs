//! Where the server listens, whom it answers, and how it stops.

use std::net::IpAddr;

use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Listening")]
pub struct ListenArgs {
    /// Address to listen on. 0.0.0.0 makes the server reachable from other machines. The environment variable HOSTNAME counts
    /// when it is an address (containers set it to a name). Default: 127.0.0.1; called as text-generation-launcher, 0.0.0.0.
    #[arg(long)]
    pub hostname: Option<IpAddr>,

    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, short, env = "PORT", default_value_t = 3000)]
    pub port: u16,

    /// Another port, on which GET /metrics alone is answered: for scrapers that must not reach the rest. /metrics is on --port too.
    #[arg(long, env = "PROMETHEUS_PORT")]
    pub prometheus_port: Option<u16>,

    /// Require `Authorization: Bearer KEY` for everything that generates.
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Origins that browsers may call from; repeat the flag for several. Default: any.
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Vec<String>,

    /// Largest request body in bytes.
    #[arg(long, env = "PAYLOAD_LIMIT", default_value_t = 2_000_000)]
    pub payload_limit: usize,

    /// Seconds that running requests get to finish after SIGTERM or Ctrl-C.
    #[arg(long, short = 'g', env = "GRACEFUL_TERMINATION_TIMEOUT", default_value_t = 90)]
    pub graceful_termination_timeout: u64,
}
