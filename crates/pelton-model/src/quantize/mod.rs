//! Quantised checkpoints: integers that fit what the model does with them, written in formats that other programs read too.
//!
//! Reading order: this module says what is done, `calibrate` sees what reaches each linear, `factor` works on that, `gptq` and `awq` choose
//! integers, `pack` spells them, `write` makes the files.

mod awq;
mod calibrate;
mod factor;
mod gptq;
mod pack;
mod write;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use ndarray::{Array1, Array2, Axis, concatenate};
use pelton_backend::{Backend, Bits, Group, GroupedRow, IntGroups};
use safetensors::Dtype;

use crate::config::{ConfigError, HfConfig};
use crate::families::spec_of;
use crate::files::ModelFiles;
use crate::load::{CONFIG, LoadError, settle, tolerates};
use crate::model::ModelError;
use crate::spec::{
    Block, DecoderSpec, DecoderTensors, LayerTensors, LinearTensors, NormKind, NormTensors, Stored, TensorSpec,
};
use crate::weights::{Checkpoint, CheckpointError, scheme_of};

use calibrate::{Calibrated, Place, Seen};
pub use calibrate::{Calibration, CalibrationError};
pub(crate) use factor::Moments;
use gptq::Rounded;
use pack::NewTensor;

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantizeFormat {
    /// GPTQ, symmetric.
    Gptq {
        /// Bits of a weight.
        bits: Bits,
        /// Weights with one scale.
        group: Group,
        /// Whether inputs that carry much are rounded first.
        act_order: bool,
    },
    /// AWQ in the `gemm` layout, with zero points.
    Awq {
        /// Weights with one scale; not [`Group::Row`].
        group: Group,
    },
    /// Rows of eight bits, rounded to nearest, as compressed-tensors.
    Int8,
    /// Groups of four bits, rounded to nearest, as compressed-tensors.
    Int4 {
        /// Weights with one scale.
        group: Group,
    },
}

impl QuantizeFormat {
    /// Whether it looks at what the model does with a text.
    pub fn calibrates(self) -> bool {
        matches!(self, Self::Gptq { .. } | Self::Awq { .. })
    }

    /// The integers of a matrix.
    fn integers(self) -> IntGroups {
        match self {
            Self::Gptq { bits, group, .. } => IntGroups { bits, group, zeros: false },
            Self::Awq { group } => awq::format(group),
            Self::Int8 => IntGroups::INT8,
            Self::Int4 { group } => IntGroups { bits: Bits::Four, group, zeros: false },
        }
    }

    /// Numbers that stand in one word, and in which direction: features going out, features coming in.
    fn whole_words(self) -> [usize; 2] {
        match self {
            Self::Gptq { bits, .. } => [32 / bits.count(); 2],
            Self::Awq { .. } => [8, 1],
            Self::Int8 => [1, 1],
            Self::Int4 { .. } => [1, 8],
        }
    }
}

/// A checkpoint that cannot be quantised.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// Its model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Calibration.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// A calibration step failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its weights are not in numbers.
    #[error(
        "its weights are {found}: rounding them a second time costs more than it saves; begin with the checkpoint they were made from"
    )]
    Already {
        /// How they are kept.
        found: String,
    },
    /// A matrix that the format has no form for.
    #[error("{tensor} cannot be written in this format: {cause}")]
    Matrix {
        /// Its name.
        tensor: String,
        /// Why.
        cause: String,
    },
    /// The result could not be written.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        cause: String,
    },
}

impl From<ConfigError> for QuantizeError {
    fn from(error: ConfigError) -> Self {
        Self::Load(error.into())
    }
}

impl From<CheckpointError> for QuantizeError {
    fn from(error: CheckpointError) -> Self {
        Self::Load(error.into())
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeReport {
    /// Matrices in integers.
    pub matrices: usize,
    /// Matrices whose inputs never came, so that nothing was known of them (experts that no row chose).
    pub unseen: usize,
    /// Bytes of all weights before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
}

/// Writes the checkpoint in `files` to the new folder `out`, matrices of layers in `format`; embedding, head, norms and biases stay.
///
/// `calibration` is needed where [`QuantizeFormat::calibrates`]: the model is loaded into `backend` and reads it, in float32.
pub fn quantize<B: Backend>(
    files: &ModelFiles,
    backend: B,
    format: QuantizeFormat,
    calibration: Option<&Calibration>,
    out: &Path,
    show_progress: bool,
) -> Result<QuantizeReport, QuantizeError> {
    let config_bytes =
        files.read(CONFIG).map_err(LoadError::from)?.ok_or_else(|| ConfigError::NoFile { file: CONFIG.to_owned() })?;
    let config = HfConfig::parse(CONFIG, &config_bytes)?;
    let (_, mut spec) = spec_of(&config)?;
    if files.gguf().is_some() {
        return Err(QuantizeError::Already { found: "in the blocks of a GGUF file".to_owned() });
    }
    if let Some(scheme) = scheme_of(&config, files).map_err(LoadError::from)? {
        return Err(QuantizeError::Already { found: format!("quantised as {scheme}") });
    }
    let checkpoint = Checkpoint::open(files)?;
    settle(&mut spec, &checkpoint);
    let tensors = spec.tensors();
    checkpoint.check(tensors.all(), |name| tolerates(&spec, name), Vec::new())?;
    check_forms(&tensors, format)?;
    if format.calibrates() && calibration.is_none() {
        return Err(CalibrationError::Missing.into());
    }
    write::check_new(out)?;

    let mut job = Job {
        spec: &spec,
        checkpoint: &checkpoint,
        format,
        written: Vec::new(),
        replaced: HashSet::new(),
        report: QuantizeReport { matrices: 0, unseen: 0, bytes_before: 0, bytes_after: 0 },
    };
    match calibration.filter(|_| format.calibrates()) {
        None => {
            let bar = bar(show_progress, tensors.layers.len(), "rounding", "blocks");
            for layer in &tensors.layers {
                for linear in layer.linears() {
                    job.linear(linear, None, &Fold::default())?;
                }
                bar.inc(1);
            }
            bar.finish_and_clear();
        }
        Some(calibration) => {
            let mut calibrated = Calibrated::load(files, backend, calibration, spec.max_positions)?;
            let mut next = 0;
            while next < tensors.layers.len() {
                let (layers, moments) = calibrated.see(next, &tensors.layers, show_progress)?;
                let bar = bar(show_progress, layers.len(), "rounding", "blocks");
                for index in layers.clone() {
                    job.layer(index, &tensors.layers[index], &moments)?;
                    bar.inc(1);
                }
                bar.finish_and_clear();
                next = layers.end;
            }
        }
    }
    let Job { written, replaced, mut report, .. } = job;
    (report.bytes_before, report.bytes_after) = write::weights(out, &checkpoint, &replaced, &written)?;
    write::others(out, files, &config_bytes, format, &tensors, &spec)?;
    Ok(report)
}

/// Whether every matrix can be spelt in `format`.
fn check_forms(tensors: &DecoderTensors, format: QuantizeFormat) -> Result<(), QuantizeError> {
    let [whole_out, whole_in] = format.whole_words();
    let group = format.integers().group;
    for part in tensors.linears().flat_map(|linear| &linear.parts) {
        let refuse = |cause: String| Err(QuantizeError::Matrix { tensor: part.name.clone(), cause });
        if part.stored == Stored::Transposed && !matches!(format, QuantizeFormat::Gptq { .. }) {
            return refuse("it is stored transposed, which only GPTQ files have a form for".to_owned());
        }
        for (what, features, whole) in [("out", part.shape[0], whole_out), ("in", part.shape[1], whole_in)] {
            if !features.is_multiple_of(whole) {
                return refuse(format!("it has {features} features going {what}, not a multiple of {whole}"));
            }
        }
        let (features, group) = (part.shape[1], group.features(part.shape[1]));
        if !features.is_multiple_of(group) {
            return refuse(format!(
                "it has {features} features coming in, no whole number of groups of {group}; try smaller groups"
            ));
        }
    }
    Ok(())
}

fn bar(show: bool, count: usize, doing: &str, what: &str) -> ProgressBar {
    if !show {
        return ProgressBar::hidden();
    }
    // Drawn on standard error, and only when that is a terminal.
    let bar = ProgressBar::new(count as u64);
    let template = format!("{doing} [{{bar:32}}] {{pos}} of {{len}} {what}, {{elapsed}} (about {{eta}} more)");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// A checkpoint on its way from numbers to integers.
struct Job<'a> {
    spec: &'a DecoderSpec,
    checkpoint: &'a Checkpoint,
    format: QuantizeFormat,
    /// New tensors.
    written: Vec<NewTensor>,
    /// Names of tensors that are not copied.
    replaced: HashSet<String>,
    report: QuantizeReport,
}

/// What a linear's weights are multiplied by before they are rounded; what feeds it and what it feeds make up for it.
#[derive(Debug, Default)]
struct Fold {
    /// By input feature.
    inputs: Option<Array1<f32>>,
    /// By output feature.
    outputs: Option<Array1<f32>>,
}

impl Job<'_> {
    /// One block, whose linears have seen `moments`.
    fn layer(&mut self, index: usize, layer: &LayerTensors, moments: &Seen) -> Result<(), QuantizeError> {
        let of = |linear: usize| moments.get(&Place { layer: index, linear });
        let folds = match self.format {
            QuantizeFormat::Awq { .. } => self.awq_folds(layer, &of)?,
            _ => Vec::new(),
        };
        let none = Fold::default();
        for (number, linear) in layer.linears().enumerate() {
            self.linear(linear, of(number), folds.get(number).unwrap_or(&none))?;
        }
        Ok(())
    }

    /// AWQ's factors for the linears of a block, in their order; the norms that make up for them are written.
    ///
    /// A norm feeds what it alone feeds; the up half of a gated MLP feeds the projection back. Experts read one norm together with what
    /// chooses them, so theirs is left alone.
    fn awq_folds<'m>(
        &mut self,
        layer: &LayerTensors,
        of: &dyn Fn(usize) -> Option<&'m Moments>,
    ) -> Result<Vec<Fold>, QuantizeError> {
        let format = self.format.integers();
        let mut folds: Vec<Fold> = layer.linears().map(|_| Fold::default()).collect();
        let (qkv, dense) = (self.joined(&layer.qkv)?, layer.mlp.dense());
        let up = dense.map(|mlp| self.joined(&mlp.up)).transpose()?;
        let shares_norm = self.spec.block == Block::ParallelOneNorm;
        if let Some(moments) = of(0).filter(|_| !shares_norm || up.is_some()) {
            let readers: Vec<&Array2<f32>> = std::iter::once(&qkv).chain(up.as_ref().filter(|_| shares_norm)).collect();
            let factors = awq::factors(&readers, moments, format);
            self.divide_norm(&layer.attention_norm, &factors)?;
            if shares_norm {
                folds[2].inputs = Some(factors.clone());
            }
            folds[0].inputs = Some(factors);
        }
        if let (Some(mlp), Some(up)) = (dense, &up) {
            if let (Some(norm), Some(moments)) = (&layer.mlp_norm, of(2)) {
                let factors = awq::factors(&[up], moments, format);
                self.divide_norm(norm, &factors)?;
                folds[2].inputs = Some(factors);
            }
            if let Some(moments) = of(3).filter(|_| self.spec.mlp.gated) {
                let factors = awq::factors(&[&self.joined(&mlp.down)?], moments, format);
                let gates = Array1::ones(factors.len());
                folds[2].outputs = Some(concatenate![Axis(0), gates, factors.mapv(f32::recip)]);
                folds[3].inputs = Some(factors);
            }
        }
        Ok(folds)
    }

    /// The parts of `linear`, one below the other, `[out, in]`.
    fn joined(&self, linear: &LinearTensors) -> Result<Array2<f32>, QuantizeError> {
        let mut numbers = Vec::new();
        for part in &linear.parts {
            numbers.extend(self.checkpoint.tensor(part)?.host().to_f32());
        }
        let in_features = linear.parts[0].shape[1];
        Ok(Array2::from_shape_vec((numbers.len() / in_features, in_features), numbers).expect("whole rows"))
    }

    /// Rounds `linear` and keeps its tensors.
    fn linear(&mut self, linear: &LinearTensors, moments: Option<&Moments>, fold: &Fold) -> Result<(), QuantizeError> {
        let mut weight = self.joined(linear)?;
        if let Some(outputs) = &fold.outputs {
            weight *= &outputs.view().insert_axis(Axis(1));
        }
        if let Some(inputs) = &fold.inputs {
            weight *= inputs;
        }
        let Rounded { rows, order } = self.rounded(&weight, moments, fold)?;
        let mut rows = rows.into_iter();
        for part in &linear.parts {
            let rows = in_file_order(rows.by_ref().take(part.shape[0]).collect(), &part.stored);
            self.keep(part, Rounded { rows, order: order.clone() });
        }
        self.report.unseen += usize::from(moments.is_some_and(|moments| moments.rows() == 0)) * linear.parts.len();
        if let Some(outputs) = &fold.outputs {
            let mut first = 0;
            for bias in &linear.bias {
                let mut numbers = self.checkpoint.tensor(bias)?.host().to_f32();
                let factors = outputs.iter().skip(first);
                first += numbers.len();
                numbers.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
                self.keep_vector(bias, &numbers);
            }
        }
        Ok(())
    }

    /// `weight` in integers.
    fn rounded(&self, weight: &Array2<f32>, moments: Option<&Moments>, fold: &Fold) -> Result<Rounded, QuantizeError> {
        let format = self.format.integers();
        let each = |round: &dyn Fn(&[f32]) -> GroupedRow| Rounded {
            rows: weight.rows().into_iter().map(|row| round(&row.to_vec())).collect(),
            order: None,
        };
        Ok(match (self.format, moments) {
            (QuantizeFormat::Gptq { act_order, .. }, Some(moments)) => {
                gptq::gptq(weight, moments, format, act_order)
                    .ok_or_else(|| CalibrationError::NotFinite { linear: format!("{:?}", weight.dim()) })?
            }
            (QuantizeFormat::Awq { .. }, Some(moments)) => {
                let mut squares = moments.squares();
                if let Some(inputs) = &fold.inputs {
                    squares /= &(inputs * inputs);
                }
                let squares = squares.to_vec();
                each(&|row| awq::round(row, &squares, format))
            }
            _ => each(&|row| format.quantise(row)),
        })
    }

    /// Keeps the integers of `part` instead of its numbers.
    fn keep(&mut self, part: &TensorSpec, rounded: Rounded) {
        let module = part.name.strip_suffix(".weight").unwrap_or(&part.name);
        self.written.extend(match self.format {
            QuantizeFormat::Gptq { .. } => pack::gptq(module, &rounded, self.format.integers()),
            QuantizeFormat::Awq { .. } => pack::awq(module, &rounded.rows),
            QuantizeFormat::Int8 => pack::int8(module, &rounded.rows),
            QuantizeFormat::Int4 { .. } => pack::int4(module, &rounded.rows),
        });
        self.replaced.insert(part.name.clone());
        self.report.matrices += 1;
    }

    /// Divides what `norm` gives by `factors`.
    fn divide_norm(&mut self, norm: &NormTensors, factors: &Array1<f32>) -> Result<(), QuantizeError> {
        let stored_less = if self.spec.norm.kind == NormKind::RmsLessOne { 1.0 } else { 0.0 };
        for (tensor, less) in
            std::iter::once((&norm.weight, stored_less)).chain(norm.bias.iter().map(|bias| (bias, 0.0)))
        {
            let mut numbers = self.checkpoint.tensor(tensor)?.host().to_f32();
            numbers.iter_mut().zip(factors).for_each(|(x, factor)| *x = (*x + less) / factor - less);
            self.keep_vector(tensor, &numbers);
        }
        Ok(())
    }

    fn keep_vector(&mut self, tensor: &TensorSpec, numbers: &[f32]) {
        let stored = match &tensor.stored {
            Stored::Rows(rows) => {
                let mut stored = vec![0.0; numbers.len()];
                rows.iter().zip(numbers).for_each(|(&row, &x)| stored[row as usize] = x);
                stored
            }
            _ => numbers.to_vec(),
        };
        let bytes = stored.into_iter().flat_map(f32::to_le_bytes);
        self.written.push(NewTensor::new(tensor.name.clone(), Dtype::F32, tensor.shape.clone(), bytes));
        self.replaced.insert(tensor.name.clone());
    }
}

/// Rows in the order of the file, from that of the model.
fn in_file_order(rows: Vec<GroupedRow>, stored: &Stored) -> Vec<GroupedRow> {
    match stored {
        Stored::Rows(order) => {
            let mut placed: Vec<(u32, GroupedRow)> = order.iter().copied().zip(rows).collect();
            placed.sort_by_key(|(row, _)| *row);
            placed.into_iter().map(|(_, row)| row).collect()
        }
        _ => rows,
    }
}
