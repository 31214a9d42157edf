//! How matrices in integers are spelt in checkpoints that other programs read too: the tensors of one module.

use half::f16;
use pelton_backend::{GroupedRow, IntGroups};
use safetensors::Dtype;

use super::gptq::Rounded;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NewTensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl NewTensor {
    pub(crate) fn new(name: String, dtype: Dtype, shape: Vec<usize>, bytes: impl IntoIterator<Item = u8>) -> Self {
        Self { name, dtype, shape, bytes: bytes.into_iter().collect() }
    }
}

/// Columns of an AWQ word, from its lowest bits on.
const AWQ_COLUMNS: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// GPTQ, first version (zero points less one): `qweight` `[in * bits / 32, out]` packed along inputs, `qzeros` `[groups, out * bits / 32]`,
/// `scales` `[groups, out]`, `g_idx` `[in]`.
pub(crate) fn gptq(module: &str, rounded: &Rounded, format: IntGroups) -> Vec<NewTensor> {
    let rows = &rounded.rows;
    let (bits, in_features, num_groups) = (format.bits.count(), rows[0].codes.len(), rows[0].scales.len());
    let features = format.group.features(in_features);
    // Codes lie as the inputs come, whatever order they were rounded in.
    let mut places: Vec<usize> = (0..in_features).collect();
    for (place, &feature) in rounded.order.iter().flatten().enumerate() {
        places[feature as usize] = place;
    }
    let in_word = 32 / bits;
    let mut words = Vec::with_capacity(in_features / in_word * rows.len());
    for inputs in places.chunks(in_word) {
        words.extend(rows.iter().map(|row| word(inputs.iter().map(|&place| row.codes[place]), bits)));
    }
    let largest = format.bits.largest();
    let mut zeros = Vec::new();
    for group in 0..num_groups {
        let stored = |row: &GroupedRow| row.zeros[group].wrapping_sub(1) & largest;
        zeros.extend(rows.chunks(in_word).map(|rows| word(rows.iter().map(stored), bits)));
    }
    let groups = places.iter().flat_map(|place| ((place / features) as i32).to_le_bytes());
    vec![
        words_tensor(module, "qweight", vec![in_features / in_word, rows.len()], &words),
        words_tensor(module, "qzeros", vec![num_groups, rows.len() / in_word], &zeros),
        scales_by_group(module, rows),
        NewTensor::new(format!("{module}.g_idx"), Dtype::I32, vec![in_features], groups),
    ]
}

/// AWQ, `gemm` layout: `qweight` `[in, out / 8]` packed along outputs, `qzeros` `[groups, out / 8]`, `scales` `[groups, out]`.
pub(crate) fn awq(module: &str, rows: &[GroupedRow]) -> Vec<NewTensor> {
    let (in_features, num_groups) = (rows[0].codes.len(), rows[0].scales.len());
    let packed = |number: &dyn Fn(&GroupedRow) -> u8| -> Vec<u32> {
        rows.chunks(8).map(|rows| word(AWQ_COLUMNS.iter().map(|&column| number(&rows[column])), 4)).collect()
    };
    let words: Vec<u32> = (0..in_features).flat_map(|input| packed(&|row| row.codes[input])).collect();
    let zeros: Vec<u32> = (0..num_groups).flat_map(|group| packed(&|row| row.zeros[group])).collect();
    vec![
        words_tensor(module, "qweight", vec![in_features, rows.len() / 8], &words),
        words_tensor(module, "qzeros", vec![num_groups, rows.len() / 8], &zeros),
        scales_by_group(module, rows),
    ]
}

/// compressed-tensors, `int-quantized`: `weight` `[out, in]` in signed bytes, `weight_scale` `[out, 1]`. Rows have one group and no zero point.
pub(crate) fn int8(module: &str, rows: &[GroupedRow]) -> Vec<NewTensor> {
    let shape = vec![rows.len(), rows[0].codes.len()];
    let codes = rows.iter().flat_map(|row| &row.codes).map(|code| code.wrapping_sub(128));
    let scales = rows.iter().flat_map(|row| row.scales[0].to_le_bytes());
    vec![
        NewTensor::new(format!("{module}.weight"), Dtype::I8, shape, codes),
        NewTensor::new(format!("{module}.weight_scale"), Dtype::F32, vec![rows.len(), 1], scales),
    ]
}

/// compressed-tensors, `pack-quantized`: `weight_packed` `[out, in / 8]` packed along inputs, `weight_scale` `[out, groups]`, `weight_shape`.
pub(crate) fn int4(module: &str, rows: &[GroupedRow]) -> Vec<NewTensor> {
    let (in_features, num_groups) = (rows[0].codes.len(), rows[0].scales.len());
    let words: Vec<u32> =
        rows.iter().flat_map(|row| row.codes.chunks(8).map(|codes| word(codes.iter().copied(), 4))).collect();
    let scales = rows.iter().flat_map(|row| &row.scales).flat_map(|&scale| f16::from_f32(scale).to_le_bytes());
    let shape = [rows.len() as i64, in_features as i64].into_iter().flat_map(i64::to_le_bytes);
    vec![
        words_tensor(module, "weight_packed", vec![rows.len(), in_features / 8], &words),
        NewTensor::new(format!("{module}.weight_scale"), Dtype::F16, vec![rows.len(), num_groups], scales),
        NewTensor::new(format!("{module}.weight_shape"), Dtype::I64, vec![2], shape),
    ]
}

/// Numbers of `bits` bits, the first lowest.
fn word(numbers: impl Iterator<Item = u8>, bits: usize) -> u32 {
    numbers.enumerate().fold(0, |word, (index, number)| word | u32::from(number) << (index * bits))
}

fn words_tensor(module: &str, suffix: &str, shape: Vec<usize>, words: &[u32]) -> NewTensor {
    NewTensor::new(format!("{module}.{suffix}"), Dtype::I32, shape, words.iter().flat_map(|word| word.to_le_bytes()))
}

fn scales_by_group(module: &str, rows: &[GroupedRow]) -> NewTensor {
    let num_groups = rows[0].scales.len();
    let scales = (0..num_groups).flat_map(|group| rows.iter().map(move |row| row.scales[group]));
    let bytes = scales.flat_map(|scale| f16::from_f32(scale).to_le_bytes());
    NewTensor::new(format!("{module}.scales"), Dtype::F16, vec![num_groups, rows.len()], bytes)
}
