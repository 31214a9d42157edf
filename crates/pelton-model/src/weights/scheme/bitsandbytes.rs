//! bitsandbytes: int8 with a scale for each output feature, or four bits that name a number of a codebook.
//!
//! | tensor | type | shape |
//! | --- | --- | --- |
//! | `weight` | I8 | `[out, in]` |
//! | `SCB` | F32 | `[out]`: the largest magnitude of each row; a weight is `code * SCB / 127` |
//! | `weight` | U8 | `[ceil(out * in / 2), 1]`: codes of the flattened matrix, upper half of a byte first |
//! | `weight.quant_map` | F32 | `[16]`: the codebook |
//! | `weight.absmax` | F32 | one for each block of the flattened matrix |
//! | `weight.absmax` | U8 | the same: codes of `weight.nested_quant_map` `[256]`, times `weight.nested_absmax` (one for each block of them), plus an offset |
//! | `weight.quant_state.bitsandbytes__nf4`, `__fp4` | U8 | JSON: sizes of blocks, shape, offset |
//!
//! Four bits are decoded to numbers, `codebook[code] * absmax`, rounded to float32 once. Source: bitsandbytes' `QuantState` and its
//! description of LLM.int8 and QLoRA (Dettmers et al. 2022, 2023).

use pelton_backend::{Bits, DType, IntGroups};
use serde::Deserialize;

use super::integers::{Codes, Cut};
use super::{Module, Problem, Spelling, dense};
use crate::weights::safetensors::ElementType;
use crate::weights::{CheckpointError, Matrix};

const F32: &[ElementType] = &[ElementType::Float(DType::F32)];

/// Numbers of a codebook.
const CODES: usize = 16;
/// Numbers of the codebook for scales.
const NESTED_CODES: usize = 256;
/// Blocks of scales, and of weights, are of some thousands at most.
const MAX_BLOCK: usize = 1 << 16;

#[derive(Debug)]
struct Bytes {
    cut: Cut,
}

#[derive(Debug)]
struct Codebook {
    block: usize,
    nested: Option<Nested>,
}

/// How scales are quantised themselves.
#[derive(Debug, Clone, Copy)]
struct Nested {
    block: usize,
    offset: f32,
}

/// What the tensor of JSON says.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

pub(super) fn spell(module: &Module<'_>) -> Result<Option<Box<dyn Spelling>>, Problem> {
    match module.find("weight") {
        Some((ElementType::I8, _)) => {
            let [out_features, in_features] = module.shape;
            module.expect("weight", &[ElementType::I8], &[&[out_features, in_features]])?;
            module.expect("SCB", F32, &[&[out_features], &[out_features, 1]])?;
            // Says in what order a GPU wants the codes; files have rows.
            module.find("weight_format");
            let cut = Cut { bits: Bits::Eight, in_features, features: in_features, zeros: false, group_of: None };
            Ok(Some(Box::new(Bytes { cut })))
        }
        Some((ElementType::U8, _)) => codebook(module).map(|codebook| Some(Box::new(codebook) as Box<dyn Spelling>)),
        _ => Ok(None),
    }
}

fn codebook(module: &Module<'_>) -> Result<Codebook, Problem> {
    let num_elements = module.shape[0] * module.shape[1];
    let packed = num_elements.div_ceil(2);
    module.expect("weight", &[ElementType::U8], &[&[packed, 1], &[1, packed], &[packed]])?;
    let states = ["nf4", "fp4"].map(|kind| format!("weight.quant_state.bitsandbytes__{kind}"));
    let Some(state) = states.iter().find(|state| module.find(state).is_some()) else {
        return Err(format!("{} is missing", module.tensor_name(&states[0])).into());
    };
    module.typed(state, &[ElementType::U8])?;
    let name = module.tensor_name(state);
    let json = module.bytes(state)?;
    let stated: State =
        serde_json::from_slice(json.as_slice()).map_err(|error| format!("{name} is broken: {error}"))?;
    let within = |what: &str, block: usize| match block {
        1..=MAX_BLOCK => Ok(block),
        _ => Err(format!("{name} has a {what} of {block}, expected 1 to {MAX_BLOCK}")),
    };
    if stated.shape != module.shape {
        return Err(format!("{name} has shape {:?}, expected {:?}", stated.shape, module.shape).into());
    }
    let block = within("blocksize", stated.blocksize)?;
    let num_blocks = num_elements.div_ceil(block);
    module.expect("weight.quant_map", F32, &[&[CODES]])?;
    let nested = match module.find("weight.absmax") {
        Some((ElementType::U8, _)) => {
            module.expect("weight.absmax", &[ElementType::U8], &[&[num_blocks]])?;
            let block = within("nested_blocksize", stated.nested_blocksize.unwrap_or_default())?;
            module.expect("weight.nested_absmax", F32, &[&[num_blocks.div_ceil(block)]])?;
            module.expect("weight.nested_quant_map", F32, &[&[NESTED_CODES]])?;
            Some(Nested { block, offset: stated.nested_offset.unwrap_or_default() })
        }
        _ => {
            module.expect("weight.absmax", F32, &[&[num_blocks]])?;
            None
        }
    };
    Ok(Codebook { block, nested })
}

impl Spelling for Bytes {
    fn integers(&self) -> Option<IntGroups> {
        self.cut.kept()
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let codes = module.bytes("weight")?.as_slice().iter().map(|byte| byte ^ 0x80).collect();
        let scales = module.floats("SCB")?.into_iter().map(|largest| largest / 127.0).collect();
        self.cut.matrix(module, Codes { codes, scales, zeros: None })
    }
}

impl Spelling for Codebook {
    fn integers(&self) -> Option<IntGroups> {
        None
    }

    fn read(&self, module: &Module<'_>) -> Result<Matrix, CheckpointError> {
        let numbers = module.floats("weight.quant_map")?;
        let scales = match self.nested {
            None => module.floats("weight.absmax")?,
            Some(Nested { block, offset }) => {
                let (scales, numbers) =
                    (module.floats("weight.nested_absmax")?, module.floats("weight.nested_quant_map")?);
                let codes = module.bytes("weight.absmax")?;
                let decoded = codes.as_slice().iter().enumerate();
                decoded.map(|(index, &code)| numbers[usize::from(code)] * scales[index / block] + offset).collect()
            }
        };
        let num_elements = module.shape[0] * module.shape[1];
        let codes = module.bytes("weight")?;
        let halves = codes.as_slice().iter().flat_map(|byte| [byte >> 4, byte & 15]).take(num_elements);
        let values: Vec<f32> =
            halves.enumerate().map(|(index, code)| numbers[usize::from(code)] * scales[index / self.block]).collect();
        Ok(dense(module.shape, &values))
    }
}
