//! Integers in groups: every cut of a matrix, both ways in, input features in another order.

use std::borrow::Cow;

use super::linear::{Case, compare};
use super::{Numbers, RowsAs, Source, assert_same_bits, plain_batch, read, step_of};
use crate::{Backend, Bits, DenseWeight, Group, GroupedRow, GroupedWeight, HostTensor, IntGroups};

/// Input features around steps and groups.
const K: [usize; 11] = [1, 7, 31, 32, 33, 64, 127, 129, 256, 300, 1030];

/// Output features: more than one panel, not a whole number of lanes.
const N: usize = 70;

/// Results match the reference in every format; a matrix that arrives in integers gives the bits of one that is quantised into the
/// same; and an order of input features changes nothing but where they lie.
pub fn grouped<B: Backend>(backend: &B) {
    let mut seed = 0;
    for bits in [Bits::Four, Bits::Eight] {
        for group in [Group::Of32, Group::Of64, Group::Of128, Group::Row] {
            for zeros in [false, true] {
                let format = IntGroups { bits, group, zeros };
                for k in K {
                    seed += 1;
                    let rows_as = RowsAs::Grouped(group);
                    compare(backend, Case { shape: [3, N, k], stored_as: format.into(), rows_as, seed });
                    arrives_in_integers(backend, format, k);
                }
            }
        }
    }
    refusals(backend);
}

fn arrives_in_integers<B: Backend>(backend: &B, format: IntGroups, k: usize) {
    let mut numbers = Numbers(k as u64);
    let (x, w) = (numbers.take(2 * k, 1.0), numbers.take(N * k, 1.0));
    let dense = DenseWeight::new(HostTensor::from_f32(vec![N, k], &w), format).expect("a matrix");
    let expected = results(backend, &backend.pack(&[dense]).expect("a weight fits"), &x, k);

    let rows: Vec<GroupedRow> = w.chunks(k).map(|row| format.quantise(row)).collect();
    let (first, last) = rows.split_at(33);
    let parts = [weight(format, first, k), weight(format, last, k)];
    let found = results(backend, &backend.pack_grouped(&parts).expect("a weight fits"), &x, k);
    let case = || format!("[{N}, {k}] in {format} from integers");
    assert_same_bits(&found.0, &expected.0, case);
    assert_same_bits(&found.1, &expected.1, case);

    // Each place of a feature is that of another: groups of the right sizes, members drawn.
    let features = format.group.features(k);
    let mut group_of: Vec<u32> = (0..k).map(|place| (place / features) as u32).collect();
    for i in (1..k).rev() {
        group_of.swap(i, numbers.bits() as usize % (i + 1));
    }
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by_key(|&feature| group_of[feature]);
    let mut moved_rows = rows.clone();
    for (moved, row) in moved_rows.iter_mut().zip(&rows) {
        for (place, &feature) in order.iter().enumerate() {
            moved.codes[feature] = row.codes[place];
        }
    }
    let mut moved_x = x.clone();
    for (moved, x) in moved_x.chunks_mut(k).zip(x.chunks(k)) {
        for (place, &feature) in order.iter().enumerate() {
            moved[feature] = x[place];
        }
    }
    let moved = weight(format, &moved_rows, k).with_group_index(&group_of).expect("groups of the right sizes");
    let found = results(backend, &backend.pack_grouped(&[moved]).expect("a weight fits"), &moved_x, k);
    let case = || format!("[{N}, {k}] in {format} in another order");
    assert_same_bits(&found.0, &expected.0, case);
    let in_place: Vec<f32> =
        found.1.chunks(k).flat_map(|row| order.iter().map(|&feature| row[feature]).collect::<Vec<_>>()).collect();
    assert_same_bits(&in_place, &expected.1, case);
}

/// The product with rows `x`, and the matrix itself, looked up as a table.
fn results<B: Backend>(backend: &B, packed: &B::Linear, x: &[f32], k: usize) -> (Vec<f32>, Vec<f32>) {
    let num_rows = x.len() / k;
    let mut out = backend.rows(num_rows, N).expect("rows fit");
    backend.linear(&Source::new(backend, x, k).rows(0..num_rows), packed, None, &mut out);
    let mut table = backend.rows(N, k).expect("rows fit");
    let tokens: Vec<u32> = (0..N as u32).collect();
    backend.embed(&step_of(backend, &plain_batch(&tokens, &[0; N])), packed, &mut table);
    (read(backend, &out), read(backend, &table))
}

fn weight(format: IntGroups, rows: &[GroupedRow], k: usize) -> GroupedWeight<'static> {
    let codes: Vec<u8> = rows.iter().flat_map(|row| &row.codes).copied().collect();
    let scales: Vec<f32> = rows.iter().flat_map(|row| &row.scales).copied().collect();
    let zeros: Vec<u8> = rows.iter().flat_map(|row| &row.zeros).copied().collect();
    let zeros = format.zeros.then_some(Cow::Owned(zeros));
    GroupedWeight::new(format, [rows.len(), k], codes, scales, zeros).expect("sizes fit together")
}

fn refusals<B: Backend>(backend: &B) {
    let part = |format: IntGroups, k: usize| {
        let rows = [format.quantise(&vec![1.0; k]), format.quantise(&vec![2.0; k])];
        weight(format, &rows, k)
    };
    assert!(backend.pack_grouped(&[]).is_err(), "no parts");
    assert!(backend.pack_grouped(&[part(IntGroups::INT4, 64), part(IntGroups::INT4, 65)]).is_err(), "different inputs");
    assert!(
        backend.pack_grouped(&[part(IntGroups::INT4, 64), part(IntGroups::INT8, 64)]).is_err(),
        "different formats"
    );
    let index: Vec<u32> = (0..64).map(|k| k % 2).collect();
    let ordered = part(IntGroups::INT4, 64).with_group_index(&index).expect("groups of the right sizes");
    assert!(backend.pack_grouped(&[part(IntGroups::INT4, 64), ordered]).is_err(), "different orders");
}
