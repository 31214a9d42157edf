//! What computes, and in which precision: flags that every command with a model shares.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use pelton_backend::{DType, KvFormat};
use pelton_cpu::{CpuConfig, IsaChoice};
use pelton_model::{DTypeChoice, KvFormatChoice, LoadOptions, Quantize};

#[derive(Debug, Clone, Copy, Args)]
pub struct ComputeArgs {
    /// Threads that compute. Default: one for each core this process may use.
    #[arg(long, env = "PELTON_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Instruction set to compute with; narrower than the machine's for tests and bug reports.
    #[arg(long, env = "PELTON_ISA", value_enum, default_value_t = IsaArg::Auto)]
    pub isa: IsaArg,

    /// Bind each thread that helps computing to a processor of its own; the one that hands out work stays free to move. Steadies machines
    /// that do nothing else. Where other processes compute too, a bound thread waits for its processor while another is free.
    #[arg(long, env = "PELTON_PIN_THREADS", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub pin_threads: bool,
}

#[derive(Debug, Clone, Args)]
pub struct PrecisionArgs {
    /// Precision of the weights that are kept as numbers. `auto` keeps the checkpoint's; `float32` costs twice the memory and time of the
    /// 16-bit types and is what checks against references run in. Weights that arrive in integers stay integers, whatever is said
    /// here; `--quantize none` decodes them.
    #[arg(long, env = "DTYPE", value_enum, default_value_t = DtypeArg::Auto)]
    pub dtype: DtypeArg,

    /// How weights are quantised. Without the flag a quantised checkpoint (GPTQ, AWQ, compressed-tensors, bitsandbytes, fp8) is served as it
    /// is, and any other in its own precision.
    ///
    /// While loading, from a checkpoint in numbers: `int8` (also `eetq`, `bitsandbytes`): eight bits with one scale for each output feature;
    /// half the memory of bfloat16, and faster. `int4`: four bits in groups of 32 input features, embedding and head in int8; near a
    /// third of the memory of bfloat16, and the fastest for few users; costs answers some of their quality. `fp8`, `bitsandbytes-nf4`,
    /// `bitsandbytes-fp4`: weights are rounded to these numbers and kept in the precision of --dtype, since no kernel computes in them: to see what they
    /// cost in quality; they save no memory.
    ///
    /// `gptq`, `awq`, `compressed-tensors` say what the checkpoint must be; `marlin` is `gptq`, packed for this machine. `none` decodes
    /// a quantised checkpoint to numbers in the precision of --dtype, for checks against references.
    #[arg(long, env = "QUANTIZE", value_name = "METHOD", value_parser = str::parse::<Quantize>)]
    pub quantize: Option<Quantize>,

    /// Precision of keys and values in the cache. `auto` is bfloat16, and float32 with --dtype float32. `int8`: eight bits with a
    /// scale for each key and value of a head: room for nearly twice as many tokens as bfloat16.
    #[arg(long, env = "KV_CACHE_DTYPE", value_enum, default_value_t = KvCacheDtypeArg::Auto)]
    pub kv_cache_dtype: KvCacheDtypeArg,
}

impl PrecisionArgs {
    /// The defaults, in these precisions; refuses what is not built.
    pub fn load_options(&self) -> Result<LoadOptions> {
        let makes_integers = matches!(self.quantize, Some(Quantize::Int8 | Quantize::Int4 | Quantize::Eetq));
        if let (Some(quantize), true) = (self.quantize, makes_integers && self.dtype != DtypeArg::Auto) {
            bail!(
                "--dtype means nothing beside --quantize {quantize}, which makes every matrix integers: leave one of them out"
            );
        }
        if matches!(self.kv_cache_dtype, KvCacheDtypeArg::Fp8E4m3fn | KvCacheDtypeArg::Fp8E5m2) {
            bail!(
                "--kv-cache-dtype fp8: no kernel reads keys and values in these numbers; int8 takes the same memory and keeps more of them"
            );
        }
        Ok(LoadOptions {
            dtype: self.dtype.exact().map_or(DTypeChoice::Auto, DTypeChoice::Exact),
            quantize: self.quantize,
            kv_format: self.kv_cache_dtype.exact().map_or(KvFormatChoice::Auto, KvFormatChoice::Exact),
            ..LoadOptions::default()
        })
    }
}

impl ComputeArgs {
    /// A flag that was given, where nothing computes.
    pub fn given(self) -> Option<&'static str> {
        let flags = [
            ("--threads", self.threads.is_some()),
            ("--isa", self.isa != IsaArg::Auto),
            ("--pin-threads", self.pin_threads),
        ];
        flags.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
    }

    pub fn config(self) -> CpuConfig {
        CpuConfig { threads: self.threads.map(usize::from), isa: self.isa.into(), pin: self.pin_threads }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeArg {
    Auto,
    Float32,
    Bfloat16,
    Float16,
}

impl DtypeArg {
    /// `None`: auto.
    pub fn exact(self) -> Option<DType> {
        match self {
            DtypeArg::Auto => None,
            DtypeArg::Float32 => Some(DType::F32),
            DtypeArg::Bfloat16 => Some(DType::BF16),
            DtypeArg::Float16 => Some(DType::F16),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvCacheDtypeArg {
    Auto,
    Float32,
    Bfloat16,
    Float16,
    Int8,
    /// Known to be refused with what to take instead.
    #[value(name = "fp8_e4m3fn", hide = true)]
    Fp8E4m3fn,
    #[value(name = "fp8_e5m2", hide = true)]
    Fp8E5m2,
}

impl KvCacheDtypeArg {
    /// `None`: auto, and what [`PrecisionArgs::load_options`] refuses.
    pub fn exact(self) -> Option<KvFormat> {
        match self {
            KvCacheDtypeArg::Auto | KvCacheDtypeArg::Fp8E4m3fn | KvCacheDtypeArg::Fp8E5m2 => None,
            KvCacheDtypeArg::Float32 => Some(DType::F32.into()),
            KvCacheDtypeArg::Bfloat16 => Some(DType::BF16.into()),
            KvCacheDtypeArg::Float16 => Some(DType::F16.into()),
            KvCacheDtypeArg::Int8 => Some(KvFormat::Int8),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsaArg {
    Auto,
    Scalar,
    Avx2,
    Avx512,
    Avx512bf16,
    Amx,
}

impl From<IsaArg> for IsaChoice {
    fn from(isa: IsaArg) -> Self {
        match isa {
            IsaArg::Auto => IsaChoice::Auto,
            IsaArg::Scalar => IsaChoice::Scalar,
            IsaArg::Avx2 => IsaChoice::Avx2,
            IsaArg::Avx512 => IsaChoice::Avx512,
            IsaArg::Avx512bf16 => IsaChoice::Avx512Bf16,
            IsaArg::Amx => IsaChoice::Amx,
        }
    }
}
