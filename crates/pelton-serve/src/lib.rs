//! The server: one internal request, one stream of events, many dialects over HTTP.
//!
//! [`run`] serves a listener until it is told to stop; [`router`] is the same without a socket. Reading order: `http` owns connections,
//! `dialects` translate the wire, `generate` turns a request into events, `metrics` counts what happened. This crate knows no backend, no
//! kernel and no model file.
#![forbid(unsafe_code)]

mod body;
mod config;
mod describe;
mod dialects;
mod generate;
mod health;
mod http;
mod metrics;
mod refusal;
mod server;
mod sse;
mod timing;
mod trace;

pub use self::http::{ServeOutcome, ServeRunError, router, run, run_metrics};
pub use config::{Limits, ServeConfig, ServedAdapter};
pub use metrics::{Outcome, RequestRecord};
pub use server::Server;
pub use trace::{Origin, TraceParent, TraceSink};
