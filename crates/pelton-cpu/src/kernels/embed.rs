//! Rows of tables: by token id from a packed one, by position from a plain one.

use half::{bf16, f16};
use pelton_backend::TokenId;

use super::linear::{Element, GroupedPanels, Int8Panels, PANEL, PackedLinear, Panels, panel_len};
use super::norm::Add;
use crate::isa::Isa;
use crate::pieces::rows_per_piece;
use crate::pool::Pool;

/// `out[r] = table[token_ids[r]]`. A row lies spread over its panel, so this reads a cache line for each number; that is
/// little beside what a step computes with them, and a tied head needs no second copy.
pub(crate) fn embed(pool: &Pool, token_ids: &[TokenId], table: &PackedLinear, out: &mut [f32]) {
    match &table.panels {
        Panels::F32(panels) => gather::<f32>(pool, token_ids, table, panels.as_slice(), out),
        Panels::F16(panels) => gather::<f16>(pool, token_ids, table, panels.as_slice(), out),
        Panels::Bf16(panels) => gather::<bf16>(pool, token_ids, table, panels.as_slice(), out),
        Panels::Int8(panels) => gather_int8(pool, token_ids, table, panels, out),
        Panels::Grouped(panels) => gather_grouped(pool, token_ids, table, panels, out),
    }
}

/// `x[r] += table[positions[r]]`, rows of `cols` columns.
pub(crate) fn add_positions(isa: Isa, pool: &Pool, positions: &[u32], table: &[f32], cols: usize, x: &mut [f32]) {
    assert_eq!(x.len(), positions.len() * cols, "rows with a position have {cols} columns");
    let rows = rows_per_piece(cols);
    pool.run_pieces(x, rows * cols, |_, index, x| {
        for (sum, &position) in x.chunks_exact_mut(cols).zip(&positions[index * rows..]) {
            isa.run(Add { sum, delta: &table[position as usize * cols..][..cols] });
        }
    });
}

fn gather<T: Element>(pool: &Pool, token_ids: &[TokenId], table: &PackedLinear, panels: &[T], out: &mut [f32]) {
    let panel_len = panel_len(table.in_features);
    each_row(pool, token_ids, table, out, |id, row| {
        for (k, value) in row.iter_mut().enumerate() {
            *value = panels[id / PANEL * panel_len + T::offset(k, id % PANEL)].widen();
        }
    });
}

fn gather_int8(pool: &Pool, token_ids: &[TokenId], table: &PackedLinear, panels: &Int8Panels, out: &mut [f32]) {
    let panel_len = Int8Panels::panel_len(table.in_features);
    let (codes, scales) = (panels.codes.as_slice(), panels.scales.as_slice());
    each_row(pool, token_ids, table, out, |id, row| {
        for (k, value) in row.iter_mut().enumerate() {
            *value = f32::from(codes[id / PANEL * panel_len + Int8Panels::offset(k, id % PANEL)]) * scales[id];
        }
    });
}

fn gather_grouped(pool: &Pool, token_ids: &[TokenId], table: &PackedLinear, panels: &GroupedPanels, out: &mut [f32]) {
    each_row(pool, token_ids, table, out, |id, row| panels.read(id, row));
}

/// Fills each row of `out` by `read(token_ids[r], row)`.
fn each_row(
    pool: &Pool,
    token_ids: &[TokenId],
    table: &PackedLinear,
    out: &mut [f32],
    read: impl Fn(usize, &mut [f32]) + Sync,
) {
    let cols = table.in_features;
    assert_eq!(out.len(), token_ids.len() * cols, "embedded rows have {cols} columns");
    // A gathered number costs about as much as eight that are read in order.
    let rows = rows_per_piece(8 * cols);
    pool.run_pieces(out, rows * cols, |_, index, out| {
        for (out, &TokenId(id)) in out.chunks_exact_mut(cols).zip(&token_ids[index * rows..]) {
            let id = id as usize;
            assert!(id < table.out_features, "token {id} is not in a table of {}", table.out_features);
            read(id, out);
        }
    });
}
