//! What all requests of one server share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use pelton_engine::EngineHandle;
use pelton_text::{TextModel, TextPool};
use tokio::sync::{Notify, Semaphore};
use tower_http::cors::CorsLayer;

use crate::generate::ServeError;
use crate::http::cors;
use crate::metrics::{CacheShape, Metrics};
use crate::trace::TraceSink;
use crate::{Limits, ServeConfig, ServeRunError, body};

/// One server: settings, the ways to engine and text, permits, metrics.
pub struct Server {
    config: ServeConfig,
    limits: Limits,
    cors: CorsLayer,
    engine: EngineHandle,
    pool: TextPool,
    /// One thread that reads grammars: texts never wait for it.
    grammar_pool: TextPool,
    /// One for each sequence in the server.
    permits: Arc<Semaphore>,
    body_memory: Arc<Semaphore>,
    metrics: Metrics,
    /// Set once, before the first request.
    traces: OnceLock<Arc<dyn TraceSink>>,
    /// Set once, by [`Server::stop`].
    is_stopping: AtomicBool,
    /// Wakes who waits for `is_stopping`.
    stopping: Notify,
    /// Set by the first to tell the log why the engine failed.
    has_told_failure: AtomicBool,
    /// Unix seconds of the start.
    created: u64,
}

impl Server {
    /// Fails when `config` promises what model and engine cannot keep.
    pub fn new(config: ServeConfig, engine: EngineHandle, pool: TextPool) -> Result<Arc<Self>, ServeRunError> {
        let limits = Limits::resolve(&config, &engine)?;
        let cors = cors(&config)?;
        let spec = engine.spec();
        let cache = CacheShape { block_tokens: spec.block_tokens, num_blocks: spec.num_blocks };
        let metrics = Metrics::new(config.model_name(), &limits, cache);
        let permits = Arc::new(Semaphore::new(config.max_concurrent_requests as usize));
        let body_memory = body::memory(config.payload_limit);
        let grammar_pool = TextPool::new(pool.model().clone(), 1, config.max_concurrent_requests as usize);
        let is_stopping = AtomicBool::new(false);
        Ok(Arc::new(Self {
            config,
            limits,
            cors,
            engine,
            pool,
            grammar_pool,
            permits,
            body_memory,
            metrics,
            traces: OnceLock::new(),
            is_stopping,
            stopping: Notify::new(),
            has_told_failure: AtomicBool::new(false),
            created: unix_seconds(),
        }))
    }

    /// Ended requests are told to `traces`. Only the first call has an effect.
    pub fn trace_to(&self, traces: Arc<dyn TraceSink>) {
        let _is_first = self.traces.set(traces);
    }

    /// From now on new work is refused and the server is not ready; what was taken up goes on.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Release);
        self.stopping.notify_waiters();
        self.engine.stop_admission();
    }

    /// Whether a request could be answered now.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping() && self.engine.is_alive()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Acquire)
    }

    /// Waits for [`Server::stop`].
    pub(crate) async fn stopped(&self) {
        // Registered first: a stop between the question and the wait is not missed.
        let mut stopping = std::pin::pin!(self.stopping.notified());
        stopping.as_mut().enable();
        if !self.is_stopping() {
            stopping.await;
        }
    }

    pub(crate) fn check_open(&self) -> Result<(), ServeError> {
        if self.is_stopping() {
            Err(ServeError::Stopping)
        } else if !self.engine.is_alive() {
            Err(ServeError::EngineFailed)
        } else {
            Ok(())
        }
    }

    /// A sequence ended before its time: tells the log why. The engine fails once, whatever the number of requests that it takes along.
    pub(crate) fn tell_failure(&self) {
        match self.engine.failure() {
            Some(reason) if !self.has_told_failure.swap(true, Ordering::Relaxed) => {
                tracing::error!(reason, "the engine has failed; only a restart helps");
            }
            Some(_) => {}
            None if self.is_stopping() => {}
            None => tracing::error!("a sequence ended early without a reason"),
        }
    }

    pub(crate) fn config(&self) -> &ServeConfig {
        &self.config
    }

    pub(crate) fn cors(&self) -> &CorsLayer {
        &self.cors
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    pub(crate) fn pool(&self) -> &TextPool {
        &self.pool
    }

    pub(crate) fn grammar_pool(&self) -> &TextPool {
        &self.grammar_pool
    }

    pub(crate) fn text(&self) -> &TextModel {
        self.pool.model()
    }

    pub(crate) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    /// One permit for each byte of bodies in memory.
    pub(crate) fn body_memory(&self) -> &Arc<Semaphore> {
        &self.body_memory
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn traces(&self) -> Option<&dyn TraceSink> {
        self.traces.get().map(|traces| &**traces)
    }

    pub(crate) fn created(&self) -> u64 {
        self.created
    }
}

pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
