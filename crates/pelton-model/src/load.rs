//! Loading: configuration, checkpoint and backend become a [`Decoder`]; whatever is wrong is found before weights are read.

use half::{bf16, f16};
use indicatif::{ProgressBar, ProgressStyle};
use pelton_backend::{Backend, BackendError, DType, KvFormat, KvSpec, MemoryReport};

use crate::adapters::{AdapterError, AdapterSource, Adapters, PackError};
use crate::config::{ConfigError, HfConfig};
use crate::decoder::{Decoder, DecoderInfo, Head};
use crate::families::spec_of;
use crate::files::{FilesError, ModelFiles};
use crate::formats::MatrixFormats;
use crate::gguf::GgufWeights;
use crate::loader::Loader;
use crate::memory::{Kept, KvBudget, MemoryError, MemoryPlan, StepLimits};
use crate::model::ModelSpec;
use crate::rope::{RopeStretch, RopeStretchError};
use crate::spec::{DecoderSpec, DecoderTensors, HeadWeight, TensorSpec};
use crate::treatment::{Quantize, QuantizeError, Treatment};
use crate::weights::{
    Checkpoint, CheckpointError, Codebook, QuantConfigError, Quantised, RandomWeights, Scheme, TensorSource, listed,
    reading_ahead, scheme_of,
};
use crate::workspace::Workspace;

/// Shorter sequences than that are not what anybody meant who named no length.
const LEAST_POSITIONS: u64 = 64;

pub(crate) const CONFIG: &str = "config.json";

/// A model that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files cannot be reached.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its configuration cannot be served.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// How it is quantised cannot be read, or not served.
    #[error(transparent)]
    QuantConfig(#[from] QuantConfigError),
    /// What was asked for is not what it is.
    #[error(transparent)]
    Quantize(#[from] QuantizeError),
    /// Its positions cannot be stretched as asked for.
    #[error(transparent)]
    Rope(#[from] RopeStretchError),
    /// Its weights are damaged, or another model's.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What is to be added to it is damaged, or another model's.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// It does not fit into memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// An option is outside its limits.
    #[error("{name} is {found}, expected {expected}")]
    Option {
        /// Which option.
        name: &'static str,
        /// Its value.
        found: usize,
        /// What it may be.
        expected: String,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl From<PackError> for LoadError {
    fn from(error: PackError) -> Self {
        match error {
            PackError::Checkpoint(error) => error.into(),
            PackError::Backend(error) => error.into(),
        }
    }
}

/// Precision of the matrices that are kept in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DTypeChoice {
    /// That of most numbers in the checkpoint.
    Auto,
    /// This one; a checkpoint in another is rounded to nearest even.
    Exact(DType),
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormatChoice {
    /// float32 beside float32 matrices, else bfloat16.
    Auto,
    /// This one.
    Exact(KvFormat),
}

/// How to load a model.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Precision of the matrices that are kept in numbers.
    pub dtype: DTypeChoice,
    /// How to quantise the matrices; `None`: those that arrive in integers stay so, all others are numbers.
    pub quantize: Option<Quantize>,
    /// How keys and values are kept.
    pub kv_format: KvFormatChoice,
    /// Positions in a KV block, 1 to 1024.
    pub block_tokens: usize,
    /// Rows a step may hold, 1 to 65536.
    pub max_step_rows: usize,
    /// Rows of a step whose logits may be asked for, 1 to `max_step_rows`.
    pub max_logit_rows: usize,
    /// How rotary positions are stretched; `None`: as the checkpoint says.
    pub rope: Option<RopeStretch>,
    /// Greatest length of a sequence; `None`: the model's own, or what the KV budget holds if that is less. More than the model's is refused.
    pub max_positions: Option<usize>,
    /// Size of the KV cache.
    pub kv_budget: KvBudget,
    /// Adapters that sequences may ask for, by their place here. They are kept in the precision of matrices in numbers.
    pub adapters: Vec<AdapterSource>,
    /// Whether to draw a bar while weights are packed; drawn on standard error, and only when that is a terminal.
    pub show_progress: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            dtype: DTypeChoice::Auto,
            quantize: None,
            kv_format: KvFormatChoice::Auto,
            block_tokens: 16,
            rope: None,
            max_step_rows: 512,
            max_logit_rows: 128,
            max_positions: None,
            kv_budget: KvBudget::Fraction(0.5),
            adapters: Vec::new(),
            show_progress: false,
        }
    }
}

/// Reads a model from `files` into `backend`.
///
/// In this order, so that nothing large happens before everything small is known to be right: `config.json`, the headers of all weight
/// files, the memory plan; then each matrix is mapped (and decoded), packed and unmapped, a few of them at a time: no more than the packed
/// weights and three groups of matrices are resident.
pub fn load<B: Backend>(files: &ModelFiles, backend: B, options: &LoadOptions) -> Result<Decoder<B>, LoadError> {
    let prepared = from_files(files, backend.memory(), options)?;
    build(prepared, backend, options)
}

/// Makes the model that `config` describes with weights from `seed` in `backend`: for measurements. No more of them is there at a time than packed
/// weights and three groups of matrices. `DTypeChoice::Auto` is bfloat16.
pub fn load_random<B: Backend>(
    config: &HfConfig,
    seed: u64,
    backend: B,
    options: &LoadOptions,
) -> Result<Decoder<B>, LoadError> {
    let (architecture, spec) = spec_of(config)?;
    let limits = check_options(options, &spec)?;
    let adapters = Adapters::open(&options.adapters, &spec)?;
    let source = Box::new(RandomWeights::new(seed));
    let weights = Weights { source, adapters, scheme: None, dtype: Some(RandomWeights::DTYPE) };
    let prepared = plan(architecture, spec, weights, limits, Vec::new(), backend.memory(), options)?;
    build(prepared, backend, options)
}

/// Packs the weights of `prepared` into `backend`.
fn build<B: Backend>(prepared: Prepared, backend: B, options: &LoadOptions) -> Result<Decoder<B>, LoadError> {
    let Prepared { spec, tensors, source, adapters, formats, rounding, dtype, limits, plan, info } = prepared;
    let work = Workspace::new(&backend, &spec, limits)?;

    let bar = progress_bar(options.show_progress, plan.weights_bytes);
    let source = source.as_ref();
    // The largest matrices first: while one is packed it is in memory twice.
    let vocab = tensors.vocab().map(std::slice::from_ref);
    let groups: Vec<&[TensorSpec]> = vocab.chain(tensors.linears().map(|linear| &linear.parts[..])).collect();
    let parts = reading_ahead(source, &groups, |ahead| -> Result<_, LoadError> {
        let loader = Loader {
            backend: &backend,
            source,
            ahead,
            formats: &formats,
            rounding,
            adapters: &adapters,
            adapters_dtype: dtype,
            spec: &spec,
            bar,
        };
        let embed = loader.vocab(&tensors.embed)?;
        let head = Head {
            weight: tensors.head.as_ref().map(|head| loader.vocab(head)).transpose()?,
            bias: loader.bias(tensors.head_bias.as_slice())?,
            softcap: spec.head.softcap,
        };
        let layers = (0..spec.layers.len()).map(|index| loader.layer(index, &tensors)).collect::<Result<_, _>>()?;
        let norm = loader.norm(&tensors.norm)?;
        let positions =
            tensors.positions.as_ref().map(|table| loader.positions(table, limits.max_positions)).transpose()?;
        let rotary = loader.rotary(limits.max_positions)?;
        loader.bar.finish_and_clear();
        Ok((embed, head, layers, norm, positions, rotary))
    });
    let (embed, head, layers, norm, positions, rotary) = parts?;

    let kv = backend.kv_cache(&plan.kv, plan.num_blocks)?;
    Ok(Decoder {
        spec: ModelSpec {
            vocab_size: spec.vocab_size,
            max_positions: limits.max_positions,
            num_blocks: plan.num_blocks,
            block_tokens: plan.kv.block_tokens as u32,
            max_step_rows: limits.max_step_rows,
            max_logit_rows: limits.max_logit_rows,
            num_adapters: adapters.len(),
        },
        info,
        plan,
        embed,
        embed_factor: spec.embed_factor.map(|factor| rounded(factor, dtype)),
        positions,
        rotary,
        layers,
        norm,
        head,
        kv,
        work,
        backend,
    })
}

/// `factor` as a number of a model in `dtype`.
fn rounded(factor: f64, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => factor as f32,
        DType::F16 => f16::from_f64(factor).to_f32(),
        DType::BF16 => bf16::from_f64(factor).to_f32(),
    }
}

/// A model that is known to be whole and to fit, before its weights are read.
struct Prepared {
    spec: DecoderSpec,
    tensors: DecoderTensors,
    source: Box<dyn TensorSource>,
    adapters: Adapters,
    formats: MatrixFormats,
    rounding: Option<Codebook>,
    /// Of matrices that are kept in numbers.
    dtype: DType,
    limits: StepLimits,
    plan: MemoryPlan,
    info: DecoderInfo,
}

/// Tensors, what is added to them, how they are quantised, and the precision most of their numbers are in.
struct Weights {
    source: Box<dyn TensorSource>,
    adapters: Adapters,
    scheme: Option<Scheme>,
    dtype: Option<DType>,
}

fn from_files(files: &ModelFiles, memory: MemoryReport, options: &LoadOptions) -> Result<Prepared, LoadError> {
    let config = files.read(CONFIG)?.ok_or_else(|| ConfigError::NoFile { file: CONFIG.to_owned() })?;
    let config = HfConfig::parse(CONFIG, &config)?;
    let (architecture, mut spec) = spec_of(&config)?;
    if let Some(stretch) = options.rope {
        spec = spec.stretched(stretch)?;
    }
    let limits = check_options(options, &spec)?;
    let adapters = Adapters::open(&options.adapters, &spec)?;
    if let Some(gguf) = files.gguf() {
        let dtype = match (options.quantize, options.dtype) {
            // What is quantised next shall not be rounded before.
            (Some(quantize), _) if quantize != Quantize::Numbers => Some(DType::F32),
            (_, DTypeChoice::Exact(dtype)) => Some(dtype),
            (_, DTypeChoice::Auto) => None,
        };
        let spec = gguf.told(spec).map_err(CheckpointError::from)?;
        let ignored = |name: &str| spec.names.ignores(name);
        let source = GgufWeights::new(gguf, &spec.tensors(), ignored, dtype).map_err(CheckpointError::from)?;
        let weights = Weights { dtype: Some(source.dtype()), source: Box::new(source), adapters, scheme: None };
        return plan(architecture, spec, weights, limits, Vec::new(), memory, options);
    }
    let scheme = scheme_of(&config, files)?;
    let checkpoint = Checkpoint::open(files)?;
    let mut notes = settle(&mut spec, &checkpoint);
    let tensors = spec.tensors();
    let tolerated = |name: &str| tolerates(&spec, name);
    let mut dtype = checkpoint.prevailing_dtype(tensors.matrices());
    let source: Box<dyn TensorSource> = match scheme {
        None => {
            checkpoint.check(tensors.all(), tolerated, Vec::new())?;
            Box::new(checkpoint)
        }
        Some(scheme) => {
            // Where every matrix is quantised, norms tell what the model was made in.
            dtype = dtype.or_else(|| checkpoint.prevailing_dtype(tensors.vectors()));
            let quantised = Quantised::check(checkpoint, scheme, tensors.all(), tolerated)?;
            if quantised.num_decoded() > 0 && matches!(options.quantize, None | Some(Quantize::Fp8)) {
                let num = quantised.num_decoded();
                notes.push(format!("{num} matrices in {scheme} become numbers: no kernel computes in their format"));
            }
            Box::new(quantised)
        }
    };
    plan(architecture, spec, Weights { source, adapters, scheme, dtype }, limits, notes, memory, options)
}

/// Settles what `config.json` leaves open and the names of tensors tell; returns what is worth a warning.
pub(crate) fn settle(spec: &mut DecoderSpec, checkpoint: &Checkpoint) -> Vec<String> {
    spec.names = spec.names.found(|name| checkpoint.stored(name).is_some());
    let head = format!("{}.", spec.names.head);
    match spec.head.weight {
        HeadWeight::Own if !checkpoint.has_any(&head) => {
            spec.head.weight = HeadWeight::Embedding;
            let why = "is missing although tie_word_embeddings is false; logits come from the embedding";
            return vec![format!("{head}weight {why}")];
        }
        HeadWeight::Embedding
            if checkpoint.has_any(&head) && checkpoint.stored(&spec.tensors().embed.name).is_none() =>
        {
            spec.head.weight = HeadWeight::EmbeddingNamedHead;
        }
        _ => {}
    }
    Vec::new()
}

/// Whether a settled model may have a tensor of that name that it does not read: a tied head, a buffer of old files.
pub(crate) fn tolerates(spec: &DecoderSpec, name: &str) -> bool {
    let tied = spec.head.weight != HeadWeight::Own;
    tied && name.strip_prefix(spec.names.head).is_some_and(|rest| rest.starts_with('.')) || spec.names.ignores(name)
}

/// Settles precisions, and how memory is used.
fn plan(
    architecture: &'static str,
    spec: DecoderSpec,
    weights: Weights,
    mut limits: StepLimits,
    mut notes: Vec<String>,
    memory: MemoryReport,
    options: &LoadOptions,
) -> Result<Prepared, LoadError> {
    let tensors = spec.tensors();
    let dtype = match options.dtype {
        DTypeChoice::Exact(dtype) => dtype,
        DTypeChoice::Auto => weights.dtype.unwrap_or(DType::F32),
    };
    let in_integers = tensors.matrices().any(|tensor| weights.source.integers(tensor).is_some());
    let treatment = Treatment::of(options.quantize, weights.scheme.as_ref(), in_integers)?;
    let formats = MatrixFormats::new(&tensors, weights.source.as_ref(), treatment, dtype)?;
    let rounding = match treatment {
        Treatment::Rounded(codebook) => {
            notes.push(format!(
                "weights are rounded to {codebook} and kept in {dtype}, which saves no memory; --quantize int8 or int4 does"
            ));
            Some(codebook)
        }
        _ => None,
    };
    if !formats.decoded.is_empty() {
        notes.push(format!(
            "{} are kept in {dtype}: what they are joined with is quantised in another way",
            listed(&formats.decoded, ", ")
        ));
    }
    let format = formats.summary(&tensors);
    let kv = KvSpec {
        num_layers: spec.layers.len(),
        num_kv_heads: spec.attention.num_kv_heads,
        head_dim: spec.attention.head_dim,
        block_tokens: options.block_tokens,
        format: match options.kv_format {
            KvFormatChoice::Exact(format) => format,
            KvFormatChoice::Auto if format == DType::F32.into() => DType::F32.into(),
            KvFormatChoice::Auto => DType::BF16.into(),
        },
    };
    let kept = Kept {
        tensors: &tensors,
        formats: &formats,
        num_adapters: weights.adapters.len(),
        adapters_bytes: weights.adapters.bytes(dtype),
    };
    let plan_for = |limits| MemoryPlan::new(&spec, kept, limits, kv, options.kv_budget, memory);
    let plan = match plan_for(limits) {
        // Nobody asked for sequences of the greatest length: what there is room for will do.
        Err(MemoryError::KvTooSmall { found, .. } | MemoryError::NotEnough { room_tokens: found, .. })
            if options.max_positions.is_none() && found >= LEAST_POSITIONS =>
        {
            let own = limits.max_positions;
            limits.max_positions = found as usize;
            notes.push(format!(
                "sequences may have {found} tokens, what the KV cache holds; the model was made for {own}"
            ));
            plan_for(limits)?
        }
        plan => plan?,
    };
    let num_parameters = tensors.all().map(TensorSpec::num_elements).sum();
    let info = DecoderInfo { architecture, format, kv_format: kv.format, num_parameters, notes };
    Ok(Prepared {
        spec,
        tensors,
        source: weights.source,
        adapters: weights.adapters,
        formats,
        rounding,
        dtype,
        limits,
        plan,
        info,
    })
}

fn check_options(options: &LoadOptions, spec: &DecoderSpec) -> Result<StepLimits, LoadError> {
    let within = |name, found: usize, most: usize, expected: String| {
        if (1..=most).contains(&found) { Ok(()) } else { Err(LoadError::Option { name, found, expected }) }
    };
    within("block_tokens", options.block_tokens, 1024, "1 to 1024".to_owned())?;
    within("max_step_rows", options.max_step_rows, 65_536, "1 to 65536".to_owned())?;
    let step_rows = options.max_step_rows;
    within("max_logit_rows", options.max_logit_rows, step_rows, format!("1 to max_step_rows ({step_rows})"))?;
    let max_positions = options.max_positions.unwrap_or(spec.max_positions);
    let own = format!("1 to {}, the positions of the model", spec.max_positions);
    within("max_positions", max_positions, spec.max_positions, own)?;
    Ok(StepLimits { max_step_rows: options.max_step_rows, max_logit_rows: options.max_logit_rows, max_positions })
}

fn progress_bar(show: bool, bytes: u64) -> ProgressBar {
    if !show {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    if let Ok(style) = ProgressStyle::with_template("loading [{wide_bar}] {bytes}/{total_bytes} ({eta})") {
        bar.set_style(style);
    }
    bar
}
