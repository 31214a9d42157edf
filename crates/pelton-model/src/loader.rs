//! From tensors to a backend's matrices and a decoder's parts.

use indicatif::ProgressBar;
use pelton_backend::{
    Act, AttendSpec, Backend, BackendError, DType, DenseWeight, GroupedWeight, HeadNorms, HostTensor, Norm, RopeSpec,
    WeightFormat,
};

use crate::adapters::Adapters;
use crate::formats::MatrixFormats;
use crate::layer::{Arrangement, Attention, Layer, Rotary};
use crate::load::LoadError;
use crate::mlp::{Branch, Experts, Linear, Mlp, Shared};
use crate::rope::Rope;
use crate::spec::{
    Block, BranchTensors, DecoderSpec, DecoderTensors, ExpertsTensors, LayerTensors, LinearTensors, MlpTensors,
    NormKind, NormTensors, SharedTensors, TensorSpec,
};
use crate::weights::{Codebook, Matrix, ReadAhead, Tensor, TensorSource};

/// Reads tensors by name and hands them to the backend.
pub(crate) struct Loader<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) source: &'a dyn TensorSource,
    /// Gives matrices of layers and of the vocabulary, read before they are asked for.
    pub(crate) ahead: &'a ReadAhead<'a>,
    pub(crate) formats: &'a MatrixFormats,
    /// Of matrices of layers.
    pub(crate) rounding: Option<Codebook>,
    /// What is added to matrices of layers, and the precision it is kept in.
    pub(crate) adapters: &'a Adapters,
    pub(crate) adapters_dtype: DType,
    pub(crate) spec: &'a DecoderSpec,
    pub(crate) bar: ProgressBar,
}

impl<B: Backend> Loader<'_, B> {
    pub(crate) fn layer(&self, index: usize, tensors: &DecoderTensors) -> Result<Layer<B>, LoadError> {
        let tensors = &tensors.layers[index];
        let mut layer = self.bare_layer(index, tensors)?;
        for (number, (linear, tensors)) in
            layer.linears_of_every_row_mut().zip(tensors.linears_of_every_row()).enumerate()
        {
            let out_features = tensors.parts.iter().map(|part| part.shape[0]).sum();
            let shape = [out_features, tensors.parts[0].shape[1]];
            linear.adapters = self.adapters.pack(self.backend, [index, number], shape, self.adapters_dtype)?;
        }
        Ok(layer)
    }

    /// A layer without adapters.
    fn bare_layer(&self, index: usize, tensors: &LayerTensors) -> Result<Layer<B>, LoadError> {
        let (attention, own) = (&self.spec.attention, &self.spec.layers[index]);
        // A norm that the arrangement has: the tensors follow from it.
        let norm = |norm: &Option<NormTensors>| match norm {
            Some(norm) => self.norm(norm),
            None => unreachable!("a {:?} block has this norm", self.spec.block),
        };
        Ok(Layer {
            norm: self.norm(&tensors.attention_norm)?,
            attention: Attention {
                qkv: self.linear(&tensors.qkv)?,
                head_norms: tensors.head_norms.as_ref().map(|norms| self.head_norms(norms)).transpose()?,
                rope: own.rope,
                layer: index,
                attend: AttendSpec {
                    window: own.window,
                    softcap: attention.softcap,
                    ..AttendSpec::causal(
                        attention.num_heads,
                        attention.num_kv_heads,
                        attention.head_dim,
                        attention.scale * own.score_factor,
                    )
                },
                out: self.linear(&tensors.out)?,
            },
            mlp: match &tensors.mlp {
                BranchTensors::Dense(mlp) => Branch::Dense(self.mlp(mlp, self.spec.mlp.act)?),
                BranchTensors::Experts(experts) => Branch::Experts(self.experts(experts)?),
            },
            arrangement: match self.spec.block {
                Block::Sequential => Arrangement::Sequential { mlp_norm: norm(&tensors.mlp_norm)? },
                Block::Sandwiched => Arrangement::Sandwiched {
                    after_attention: norm(&tensors.after_attention)?,
                    mlp_norm: norm(&tensors.mlp_norm)?,
                    after_mlp: norm(&tensors.after_mlp)?,
                },
                Block::ParallelOneNorm => Arrangement::ParallelOneNorm,
                Block::ParallelTwoNorms => Arrangement::ParallelTwoNorms { mlp_norm: norm(&tensors.mlp_norm)? },
            },
        })
    }

    fn mlp(&self, tensors: &MlpTensors, act: Act) -> Result<Mlp<B>, LoadError> {
        Ok(Mlp { up: self.linear(&tensors.up)?, act, down: self.linear(&tensors.down)? })
    }

    fn experts(&self, tensors: &ExpertsTensors) -> Result<Experts<B>, LoadError> {
        let Some(spec) = &self.spec.experts else { unreachable!("experts have tensors only where they are") };
        let act = spec.mlp.act;
        let shared = |shared: &SharedTensors| {
            Ok::<_, LoadError>(Shared { mlp: self.mlp(&shared.mlp, act)?, gate: self.exact(&shared.gate)? })
        };
        Ok(Experts {
            router: self.exact(&tensors.router)?,
            route: spec.route(),
            experts: tensors.experts.iter().map(|expert| self.mlp(expert, act)).collect::<Result<_, _>>()?,
            shared: tensors.shared.as_ref().map(shared).transpose()?,
        })
    }

    /// A small matrix, in f32.
    fn exact(&self, tensor: &TensorSpec) -> Result<B::Linear, LoadError> {
        Ok(self.backend.pack(&[DenseWeight::new(self.source.tensor(tensor)?.host(), DType::F32)?])?)
    }

    fn linear(&self, tensors: &LinearTensors) -> Result<Linear<B>, LoadError> {
        Ok(Linear {
            weight: self.pack(&tensors.parts, self.rounding)?,
            bias: self.bias(&tensors.bias)?,
            adapters: None,
            inputs: None,
        })
    }

    /// The embedding or the head.
    pub(crate) fn vocab(&self, tensor: &TensorSpec) -> Result<B::Linear, LoadError> {
        self.pack(std::slice::from_ref(tensor), None)
    }

    /// Packs `parts` joined by output rows, and lets them go.
    fn pack(&self, parts: &[TensorSpec], rounding: Option<Codebook>) -> Result<B::Linear, LoadError> {
        let matrices = self.ahead.matrices(parts)?;
        let format = self.formats.of(&parts[0]);
        let packed = match integers(matrices, format) {
            Ok(weights) => self.backend.pack_grouped(&weights)?,
            Err(matrices) => {
                let numbers = matrices.into_iter().map(Matrix::decoded);
                let tensors: Vec<Tensor> = match rounding {
                    Some(codebook) => numbers.map(|tensor| tensor.rounded(codebook)).collect(),
                    None => numbers.collect(),
                };
                let weights = tensors.iter().map(|tensor| DenseWeight::new(tensor.host(), format));
                self.backend.pack(&weights.collect::<Result<Vec<_>, _>>()?)?
            }
        };
        self.bar.inc(parts.iter().map(|part| self.formats.bytes(part)).sum());
        Ok(packed)
    }

    /// The biases of joined matrices, joined alike.
    pub(crate) fn bias(&self, parts: &[TensorSpec]) -> Result<Option<B::Param>, LoadError> {
        if parts.is_empty() {
            return Ok(None);
        }
        let mut joined = Vec::new();
        for part in parts {
            joined.extend(self.source.tensor(part)?.host().to_f32());
        }
        Ok(Some(self.backend.param(&HostTensor::from_f32(vec![joined.len()], &joined))?))
    }

    pub(crate) fn norm(&self, tensors: &NormTensors) -> Result<Norm<B::Param>, LoadError> {
        let eps = self.spec.norm.eps;
        let weight = self.norm_weight(&tensors.weight)?;
        Ok(match self.spec.norm.kind {
            NormKind::Rms | NormKind::RmsLessOne => Norm::Rms { weight, eps },
            NormKind::Layer => Norm::Layer { weight, bias: self.bias(tensors.bias.as_slice())?, eps },
        })
    }

    fn head_norms(&self, [query, key]: &[TensorSpec; 2]) -> Result<HeadNorms<B::Param>, LoadError> {
        Ok(HeadNorms {
            query: self.norm_weight(query)?,
            key: self.norm_weight(key)?,
            eps: self.spec.norm.eps,
            num_heads: self.spec.attention.num_heads,
            num_kv_heads: self.spec.attention.num_kv_heads,
        })
    }

    fn norm_weight(&self, tensor: &TensorSpec) -> Result<B::Param, LoadError> {
        let mut weight = self.source.tensor(tensor)?.host().to_f32();
        if self.spec.norm.kind == NormKind::RmsLessOne {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        Ok(self.backend.param(&HostTensor::from_f32(vec![weight.len()], &weight))?)
    }

    /// Learned positions, as many as are served.
    pub(crate) fn positions(&self, tensor: &TensorSpec, max_positions: usize) -> Result<B::Param, LoadError> {
        let width = self.spec.hidden_size;
        let mut table = vec![0.0; max_positions * width];
        self.source.tensor(tensor)?.host().read_f32(0, &mut table);
        Ok(self.backend.param(&HostTensor::from_f32(vec![max_positions, width], &table))?)
    }

    pub(crate) fn rotary(&self, max_positions: usize) -> Result<Rotary<B>, LoadError> {
        let attention = &self.spec.attention;
        let table = |rope: &Rope| {
            let shape = vec![max_positions, rope.rotary_dim];
            self.backend.param(&HostTensor::new(DType::F32, shape, rope.table(max_positions))?)
        };
        Ok(Rotary {
            spec: RopeSpec {
                num_heads: attention.num_heads,
                num_kv_heads: attention.num_kv_heads,
                head_dim: attention.head_dim,
                rotary_dim: self.spec.positions.rotary_dim(),
            },
            tables: self.spec.positions.ropes().iter().map(table).collect::<Result<_, BackendError>>()?,
        })
    }
}

/// The integers of `matrices`, where they all arrive in those of `format`; else the matrices again.
fn integers(matrices: Vec<Matrix>, format: WeightFormat) -> Result<Vec<GroupedWeight<'static>>, Vec<Matrix>> {
    let fits = |matrix: &Matrix| matches!(matrix, Matrix::Grouped(weight) if format == weight.format().into());
    if !matrices.iter().all(fits) {
        return Err(matrices);
    }
    Ok(matrices
        .into_iter()
        .filter_map(|matrix| match matrix {
            Matrix::Grouped(weight) => Some(weight),
            Matrix::Dense(_) => None,
        })
        .collect())
}
