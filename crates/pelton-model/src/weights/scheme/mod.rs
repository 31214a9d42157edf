//! Schemes: how quantised checkpoints spell the matrix of one module, and how it becomes numbers or integers again.
//!
//! Which modules are quantised, in how many bits and in what groups is read from the tensors that are there and their shapes; the
//! configuration says only what shapes cannot (which zero points, which block), and is where what cannot be served is refused. So
//! lists of modules to skip and overrides for some of them need no reading: the tensors are the truth.

mod awq;
mod bitsandbytes;
mod compressed;
pub(super) mod fp8;
mod gptq;
mod integers;
mod quant_config;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pelton_backend::{DType, IntGroups};

pub use quant_config::QuantConfigError;
pub(crate) use quant_config::scheme_of;

use crate::spec::{Stored, TensorSpec};
use crate::weights::arrange::arrange;
use crate::weights::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::weights::safetensors::ElementType;
use crate::weights::shard::Bytes;
use crate::weights::{Matrix, TensorSource};

/// The scheme of a checkpoint, with what only its configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// GPTQ.
    Gptq(gptq::Gptq),
    /// AWQ.
    Awq(awq::Awq),
    /// What llm-compressor writes.
    Compressed(compressed::Compressed),
    /// Eight-bit floats.
    Fp8(fp8::Fp8),
    /// What bitsandbytes writes.
    Bitsandbytes,
}

/// The word for it in configurations and on the command line.
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gptq(_) => "gptq",
            Self::Awq(_) => "awq",
            Self::Compressed(_) => "compressed-tensors",
            Self::Fp8(_) => "fp8",
            Self::Bitsandbytes => "bitsandbytes",
        })
    }
}

impl Scheme {
    /// How `module` is spelt; `None`: in numbers, as everywhere.
    fn spell(&self, module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
        match self {
            Self::Gptq(gptq) => gptq.spell(module),
            Self::Awq(awq) => awq.spell(module),
            Self::Compressed(compressed) => compressed.spell(module),
            Self::Fp8(fp8) => fp8.spell(module),
            Self::Bitsandbytes => bitsandbytes::spell(module),
        }
    }

    /// Endings of tensors that say how activations or the cache were quantised where the checkpoint was made. Here rows are quantised as
    /// they come, or not at all, so nobody reads them.
    fn unread(&self) -> &'static [&'static str] {
        match self {
            Self::Gptq(_) => &["gptq_bits", "gptq_groupsize", "gptq_sym"],
            Self::Awq(_) | Self::Bitsandbytes => &[],
            Self::Compressed(_) | Self::Fp8(_) => UNREAD_SCALES,
        }
    }
}

const UNREAD_SCALES: &[&str] = &[
    ".input_scale",
    ".input_zero_point",
    ".input_global_scale",
    ".input_scale_ub",
    ".activation_scale",
    ".output_scale",
    ".output_zero_point",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".k_zero_point",
    ".v_zero_point",
    ".kv_scale",
];

/// How one module's matrix is spelt: found in its headers, with whatever small tensors decide how it is kept.
trait Spelling: fmt::Debug + Sync {
    /// The integers it is kept in; `None`: it is decoded to numbers.
    fn integers(&self) -> Option<IntGroups>;

    /// The group of each input feature, where they do not lie as they come.
    fn group_of(&self) -> Option<&[u32]> {
        None
    }

    /// The matrix, rows as in the file.
    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError>;
}

/// What is wrong with a module's tensors: one line for the list of all that is wrong, or an error of reading.
enum Problem {
    Line(String),
    Error(CheckpointError),
}

impl From<CheckpointError> for Problem {
    fn from(error: CheckpointError) -> Self {
        Self::Error(error)
    }
}

impl From<String> for Problem {
    fn from(line: String) -> Self {
        Self::Line(line)
    }
}

/// One module of a checkpoint: its tensors are `<name>.<suffix>`, its matrix `shape`, `[out, in]`.
struct Module<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    shape: [usize; 2],
    /// Names that were asked for.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Module<'a> {
    fn new(checkpoint: &'a Checkpoint, name: &'a str, shape: [usize; 2]) -> Self {
        Self { checkpoint, name, shape, asked: RefCell::default() }
    }

    fn tensor_name(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    /// Type and shape of a tensor that may be there.
    fn find(&self, suffix: &str) -> Option<(&'a ElementType, &'a [usize])> {
        let name = self.tensor_name(suffix);
        let found = self.checkpoint.stored(&name);
        self.asked.borrow_mut().insert(name);
        found
    }

    /// The shape of a tensor that must be there, in one of `types`.
    fn typed(&self, suffix: &str, types: &[ElementType]) -> Result<&'a [usize], Problem> {
        let name = self.tensor_name(suffix);
        let Some((element, shape)) = self.find(suffix) else {
            return Err(format!("{name} is missing").into());
        };
        if !types.contains(element) {
            let types = types.iter().map(ElementType::to_string).collect::<Vec<_>>().join(" or ");
            return Err(format!("{name} has type {element}, expected {types}").into());
        }
        Ok(shape)
    }

    /// Checks that a tensor is there, in one of `types` and one of `shapes`.
    fn expect(&self, suffix: &str, types: &[ElementType], shapes: &[&[usize]]) -> Result<(), Problem> {
        let found = self.typed(suffix, types)?;
        if shapes.contains(&found) {
            return Ok(());
        }
        let shapes = shapes.iter().map(|shape| format!("{shape:?}")).collect::<Vec<_>>().join(" or ");
        Err(format!("{} has shape {found:?}, expected {shapes}", self.tensor_name(suffix)).into())
    }

    /// An error about the numbers of a tensor.
    fn refuse(&self, suffix: &str, cause: impl fmt::Display) -> CheckpointError {
        CheckpointError::Values { tensor: self.tensor_name(suffix), cause: cause.to_string() }
    }

    fn bytes(&self, suffix: &str) -> Result<Bytes, CheckpointError> {
        self.checkpoint.bytes(&self.tensor_name(suffix))
    }

    /// Words of a tensor of [`ElementType::I32`].
    fn words(&self, suffix: &str) -> Result<Vec<u32>, CheckpointError> {
        let bytes = self.bytes(suffix)?;
        Ok(bytes.as_slice().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Numbers of a tensor of [`ElementType::Float`].
    fn floats(&self, suffix: &str) -> Result<Vec<f32>, CheckpointError> {
        let Some((ElementType::Float(dtype), shape)) = self.find(suffix) else { return Ok(Vec::new()) };
        Ok(Tensor { dtype: *dtype, shape: shape.to_vec(), bytes: self.bytes(suffix)? }.host().to_f32())
    }
}

/// Types of scales.
const FLOATS: &[ElementType] =
    &[ElementType::Float(DType::F32), ElementType::Float(DType::F16), ElementType::Float(DType::BF16)];

/// A checkpoint whose matrices are spelt in a scheme.
#[derive(Debug)]
pub(crate) struct Quantised {
    checkpoint: Checkpoint,
    modules: BTreeMap<String, Box<dyn Spelling>>,
}

impl Quantised {
    /// Finds out how each matrix of `wanted` is spelt, and checks everything else as [`Checkpoint::check`] does.
    pub(crate) fn check<'a>(
        checkpoint: Checkpoint,
        scheme: Scheme,
        wanted: impl Iterator<Item = &'a TensorSpec>,
        tolerated: impl Fn(&str) -> bool,
    ) -> Result<Self, CheckpointError> {
        let (mut modules, mut read) = (BTreeMap::new(), BTreeSet::new());
        let (mut plain, mut problems) = (Vec::new(), Vec::new());
        for spec in wanted {
            let Some((name, shape)) = module_of(spec) else {
                plain.push(spec);
                continue;
            };
            let module = Module::new(&checkpoint, name, shape);
            match scheme.spell(&module) {
                Ok(Some(spelling)) => {
                    read.extend(module.asked.into_inner());
                    modules.insert(name.to_owned(), spelling);
                }
                Ok(None) => plain.push(spec),
                Err(Problem::Line(line)) => {
                    read.extend(module.asked.into_inner());
                    problems.push(line);
                }
                Err(Problem::Error(error)) => return Err(error),
            }
        }
        let known: BTreeSet<&str> = plain.iter().map(|spec| spec.name.as_str()).collect();
        // Quantisers of some years gave every matrix a bias, full of zeros where the model has none.
        for name in modules.keys() {
            let bias = format!("{name}.bias");
            if !known.contains(bias.as_str()) && checkpoint.stored(&bias).is_some() {
                if checkpoint.bytes(&bias)?.as_slice().iter().any(|&byte| byte != 0) {
                    problems.push(format!("{bias} has numbers, but the model adds no bias there"));
                }
                read.insert(bias);
            }
        }
        let unread = |name: &str| scheme.unread().iter().any(|ending| name.ends_with(ending));
        let tolerated = |name: &str| read.contains(name) || tolerated(name) || unread(name);
        checkpoint.check(plain.into_iter(), tolerated, problems)?;
        Ok(Self { checkpoint, modules })
    }

    /// How many matrices are quantised in a way that no kernel computes in, and become numbers.
    pub(crate) fn num_decoded(&self) -> usize {
        self.modules.values().filter(|spelling| spelling.integers().is_none()).count()
    }

    fn spelling(&self, wanted: &TensorSpec) -> Option<&dyn Spelling> {
        let (name, _) = module_of(wanted)?;
        self.modules.get(name).map(AsRef::as_ref)
    }
}

/// The module whose matrix `spec` is, and its shape.
fn module_of(spec: &TensorSpec) -> Option<(&str, [usize; 2])> {
    Some((spec.name.strip_suffix(".weight")?, spec.shape.as_slice().try_into().ok()?))
}

impl TensorSource for Quantised {
    /// Also of matrices that are only wanted in numbers, such as those that choose experts.
    fn tensor(&self, wanted: &TensorSpec) -> Result<Tensor, CheckpointError> {
        self.matrix(wanted).map(Matrix::decoded)
    }

    /// Quantisers write every matrix as `[out, in]`, also those that are transposed in numbers; rows stay as they were.
    fn matrix(&self, wanted: &TensorSpec) -> Result<Matrix, CheckpointError> {
        let (Some(spelling), Some((name, shape))) = (self.spelling(wanted), module_of(wanted)) else {
            return self.checkpoint.tensor(wanted).map(Matrix::Dense);
        };
        let module = Module::new(&self.checkpoint, name, shape);
        let matrix = spelling.read(&module)?;
        let Stored::Rows(rows) = &wanted.stored else { return Ok(matrix) };
        Ok(match matrix {
            Matrix::Grouped(weight) => {
                Matrix::Grouped(weight.with_rows(rows).map_err(|error| module.refuse("weight", error))?)
            }
            Matrix::Dense(Tensor { dtype, shape, bytes }) => {
                let bytes =
                    arrange(bytes.as_slice(), &shape, dtype.size_bytes(), &wanted.stored).map_or(bytes, Bytes::Owned);
                Matrix::Dense(Tensor { dtype, shape, bytes })
            }
        })
    }

    fn integers(&self, wanted: &TensorSpec) -> Option<IntGroups> {
        self.spelling(wanted)?.integers()
    }

    fn sorted_alike(&self, parts: &[TensorSpec]) -> Result<bool, CheckpointError> {
        let mut groups = parts.iter().map(|part| self.spelling(part).and_then(Spelling::group_of));
        let first = groups.next();
        Ok(groups.all(|group_of| Some(group_of) == first))
    }
}

/// A matrix of numbers that were computed.
fn dense(shape: [usize; 2], values: &[f32]) -> Matrix {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Matrix::Dense(Tensor::made(DType::F32, shape.to_vec(), bytes))
}
