//! Traces of ended requests, sent to an OpenTelemetry collector over gRPC.
//!
//! A span for the request, and below it one for each stretch of its way: `validate`, `queue`, `prefill`, `decode`. Spans wait in a queue of
//! bounded length (2048, or OTEL_BSP_MAX_QUEUE_SIZE) that a thread of its own empties; when the collector is away they are dropped, and no
//! request waits.

use std::borrow::Cow;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use opentelemetry::trace::{
    SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer,
    TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use pelton_serve::{Origin, Outcome, RequestRecord, TraceParent, TraceSink};

/// How long the end of the program waits for the last spans to be sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way to the collector.
#[derive(Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    model: String,
}

impl Traces {
    /// Traces of requests to `model` under `service_name`, for the collector at `endpoint`. Nothing is sent yet: the collector may come later.
    /// Must be called where tokio runs.
    pub fn start(endpoint: &str, service_name: &str, model: &str) -> Result<Self> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("--otlp-endpoint cannot be {endpoint:?}"))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(service_name.to_owned()).with_attribute(version).build();
        let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        let tracer = provider.tracer("pelton");
        Ok(Self { provider, tracer, model: model.to_owned() })
    }

    /// Sends what is left. Blocks for a few seconds at most.
    pub fn stop(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces may be lost");
        }
    }
}

impl TraceSink for Traces {
    fn ended(&self, origin: &Origin, record: &RequestRecord) {
        let (now, clock) = (Instant::now(), SystemTime::now());
        // Records tell instants, spans times of day.
        let at = |instant: Instant| clock - now.saturating_duration_since(instant);
        let parent = origin
            .parent
            .as_ref()
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(span_context(parent)));
        let builder = SpanBuilder::from_name(format!("POST {}", origin.route))
            .with_kind(SpanKind::Server)
            .with_start_time(at(record.arrived_at))
            .with_attributes(self.attributes(origin, record));
        let request = parent.with_span(self.tracer.build_with_context(builder, &parent));
        if record.outcome == Outcome::Failed {
            request.span().set_status(Status::error("the request failed"));
        }
        let stretches = [
            ("validate", Some(record.arrived_at), Some(record.queued_at)),
            ("queue", Some(record.queued_at), record.scheduled_at),
            ("prefill", record.scheduled_at, record.first_token_at),
            ("decode", record.first_token_at, Some(record.finished_at)),
        ];
        for (name, start, end) in stretches {
            let (Some(start), Some(end)) = (start, end) else { continue };
            let builder = SpanBuilder::from_name(name).with_start_time(at(start));
            let stretch = Context::new().with_span(self.tracer.build_with_context(builder, &request));
            stretch.span().end_with_timestamp(at(end));
        }
        request.span().end_with_timestamp(at(record.finished_at));
    }
}

impl Traces {
    /// Named by OpenTelemetry's conventions where they have a name.
    fn attributes(&self, origin: &Origin, record: &RequestRecord) -> Vec<KeyValue> {
        let outcome = match record.outcome {
            Outcome::Stop => "stop",
            Outcome::Length => "length",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
        };
        let count = |name: &'static str, value: u32| KeyValue::new(name, i64::from(value));
        let text = |name: &'static str, value: Cow<'static, str>| KeyValue::new(name, value);
        vec![
            text("http.request.method", "POST".into()),
            text("http.route", origin.route.into()),
            text("gen_ai.request.model", self.model.clone().into()),
            count("gen_ai.request.max_tokens", record.max_tokens),
            count("gen_ai.usage.input_tokens", record.num_prompt_tokens),
            count("gen_ai.usage.output_tokens", record.num_generated_tokens),
            count("pelton.cached_tokens", record.num_cached_tokens),
            count("pelton.sequences", record.num_sequences),
            text("pelton.dialect", record.dialect.into()),
            text("pelton.outcome", outcome.into()),
        ]
    }
}

fn span_context(parent: &TraceParent) -> SpanContext {
    let flags = if parent.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    // State that cannot be read is left behind, as the recommendation says.
    let state = parent.state.parse::<TraceState>().unwrap_or_default();
    SpanContext::new(
        TraceId::from_bytes(parent.trace_id.to_be_bytes()),
        SpanId::from_bytes(parent.span_id.to_be_bytes()),
        flags,
        true,
        state,
    )
}
