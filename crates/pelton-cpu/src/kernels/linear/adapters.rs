//! What adapters add to a linear: `out[r, columns] += scale * (x[r] A^T) B^T` for the rows of each adapter in the step.
//!
//! ```text
//! narrow:  a unit is a tile of rows of one adapter    x[r] A^T, all ranks of its joined matrices, scaled    -> [tile][rank][tile rows]
//! widen:   a unit is some panels of one B             all tiles of its adapter's rows, added to `out`
//! ```
//!
//! Ranks are small, so both matrices are read from memory once in a step by whoever has a row, and stay near for its other tiles. Rows need
//! not stand together: they are gathered as they are laid out, and each writes to its own place. Both products are sums in f32 in the order of
//! their inputs, on every instruction set, so a row's result is the same alone and in any company.

use pelton_backend::{AdapterId, AdapterMatrices, BackendError, DenseWeight};

use super::pack::{PANEL, PackedLinear, Panels, panel_len};
use super::rows;
use super::tile::{PanelElement, TileArgs};
use super::{AHEAD, MAX_UNIT_PANELS, ZEROS, panel_tile};
use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};
use crate::pool::{Pool, SharedMut};
use crate::scratch::Scratches;
use crate::step::Step;

/// Rows of the largest tile of any instruction set.
const MAX_TILE_ROWS: usize = 12;

/// What all adapters add to one linear.
pub struct PackedAdapters {
    in_features: usize,
    out_features: usize,
    /// By id; `None` for those that leave this linear alone.
    by_id: Vec<Option<Adapter>>,
    /// The largest sum of ranks.
    max_ranks: usize,
}

/// What one adapter adds.
struct Adapter {
    /// The first matrices, joined by ranks.
    down: PackedLinear,
    ups: Vec<Up>,
}

/// A second matrix.
struct Up {
    weight: PackedLinear,
    /// Where its ranks begin among the joined ones.
    first_rank: usize,
    first_column: usize,
    scale: f32,
}

impl PackedAdapters {
    pub(crate) fn new(pool: &Pool, matrices: &AdapterMatrices<'_>) -> Result<Self, BackendError> {
        let stored_as = matrices.stored_as();
        let mut by_id = Vec::new();
        let mut max_ranks = 0;
        for weights in matrices.weights().chunk_by(|a, b| a.adapter == b.adapter) {
            let downs = weights.iter().map(|weight| DenseWeight::new(weight.down.clone(), stored_as));
            let down = PackedLinear::new(pool, &downs.collect::<Result<Vec<_>, _>>()?)?;
            let mut first_rank = 0;
            let mut ups = Vec::with_capacity(weights.len());
            for weight in weights {
                let packed = PackedLinear::new(pool, &[DenseWeight::new(weight.up.clone(), stored_as)?])?;
                let (first_column, scale) = (weight.first_column, weight.scale);
                ups.push(Up { weight: packed, first_rank, first_column, scale });
                first_rank += weight.rank();
            }
            max_ranks = max_ranks.max(first_rank);
            let AdapterId(id) = weights[0].adapter;
            by_id.resize_with(usize::from(id), || None);
            by_id.push(Some(Adapter { down, ups }));
        }
        let (in_features, out_features) = (matrices.in_features(), matrices.out_features());
        Ok(Self { in_features, out_features, by_id, max_ranks })
    }

    fn get(&self, AdapterId(id): AdapterId) -> Option<&Adapter> {
        self.by_id.get(usize::from(id))?.as_ref()
    }
}

/// Operands beside the sum.
pub(crate) struct Adapt<'a> {
    pub step: &'a Step,
    /// `[rows, in]`.
    pub x: &'a [f32],
    pub adapters: &'a PackedAdapters,
}

/// The rows of one adapter.
#[derive(Clone, Copy)]
struct Group<'a> {
    adapter: &'a Adapter,
    rows: &'a [u32],
    /// Where its tiles begin among those of all groups.
    first_tile: usize,
}

impl<'a> Adapt<'a> {
    /// Adapters that have rows in the step and something to add here.
    fn groups(&self, tile_rows: usize) -> impl Iterator<Item = Group<'a>> {
        let Self { step, adapters, .. } = *self;
        let present = step.adapted.iter().filter_map(|it| Some((adapters.get(it.adapter)?, it.rows.clone())));
        present.scan(0, move |next_tile, (adapter, rows)| {
            let (first_tile, rows) = (*next_tile, &step.adapted_rows[rows]);
            *next_tile += rows.len().div_ceil(tile_rows);
            Some(Group { adapter, rows, first_tile })
        })
    }
}

/// Adds to `out`, `[rows, out]`. Panics when sizes do not fit together.
pub(crate) fn adapt(isa: Isa, pool: &Pool, scratches: &Scratches, args: &Adapt<'_>, out: &mut [f32]) {
    let &Adapt { step, x, adapters } = args;
    if step.adapted.is_empty() {
        return;
    }
    let (k, n, num_rows) = (adapters.in_features, adapters.out_features, step.batch.num_rows());
    assert!(step.rows_lie_apart, "spans must lie end to end, and rows have slots of their own");
    assert_eq!(x.len(), num_rows * k, "rows that adapters read have {k} columns");
    assert_eq!(out.len(), num_rows * n, "rows that adapters add to have {n} columns");

    let tile_rows = isa.tiles().rows;
    let num_tiles: usize = args.groups(tile_rows).map(|group| group.rows.len().div_ceil(tile_rows)).sum();
    let tile_len = adapters.max_ranks * tile_rows;
    scratches.reserve_floats(k * tile_rows + tile_len);
    let mut shared = scratches.shared();
    let narrow = shared.floats(num_tiles * tile_len);
    pool.run_pieces(narrow, tile_len.max(1), |worker, tile, narrow| {
        let Some(group) = args.groups(tile_rows).take_while(|group| group.first_tile <= tile).last() else { return };
        let first = (tile - group.first_tile) * tile_rows;
        let rows = &group.rows[first..group.rows.len().min(first + tile_rows)];
        let mut scratch = scratches.of(worker);
        let (wide, sums) = scratch.floats(k * tile_rows + tile_len).split_at_mut(k * tile_rows);
        isa.run(Narrow { x, rows, down: &group.adapter.down, tile_rows, wide, sums });
        let ranks = group.adapter.down.out_features;
        for up in &group.adapter.ups {
            for rank in up.first_rank..up.first_rank + up.weight.in_features {
                for row in 0..rows.len() {
                    narrow[rank * tile_rows + row] = up.scale * sums[row * ranks + rank];
                }
            }
        }
    });

    let ups = || args.groups(tile_rows).flat_map(|group| group.adapter.ups.iter().map(move |up| (group, up)));
    let panels = |up: &Up| up.weight.out_features.div_ceil(PANEL);
    // Several units for each thread: the last ones end at about the same time.
    let all_panels: usize = ups().map(|(_, up)| panels(up)).sum();
    let unit_panels = (all_panels / (8 * pool.threads())).clamp(1, MAX_UNIT_PANELS);
    let num_units = ups().map(|(_, up)| panels(up).div_ceil(unit_panels)).sum();
    let (narrow, out) = (&*narrow, SharedMut::new(out));
    pool.run(num_units, |_, unit| {
        let mut unit = unit;
        for (group, up) in ups() {
            let units = panels(up).div_ceil(unit_panels);
            if unit < units {
                let first = unit * unit_panels;
                let panels = first..panels(up).min(first + unit_panels);
                let narrow = &narrow[group.first_tile * tile_len + up.first_rank * tile_rows..];
                isa.run(Widen { narrow, tile_len, tile_rows, rows: group.rows, up, panels, out, out_stride: n });
                return;
            }
            unit -= units;
        }
    });
}

/// `x A^T` of a tile of rows.
struct Narrow<'a> {
    /// `[rows, in]`, those of the whole step.
    x: &'a [f32],
    /// Those of the tile.
    rows: &'a [u32],
    down: &'a PackedLinear,
    tile_rows: usize,
    /// Room for the tile laid out.
    wide: &'a mut [f32],
    /// `[rows, ranks]`.
    sums: &'a mut [f32],
}

impl Kernel for Narrow<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        match &self.down.panels {
            Panels::F32(panels) => self.run_on(isa, panels.as_slice()),
            Panels::F16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Bf16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Int8(_) | Panels::Grouped(_) => unreachable!("adapters are kept in floats"),
        }
    }
}

impl Narrow<'_> {
    #[inline(always)]
    fn run_on<L: Lanes, T: PanelElement>(self, isa: L, panels: &[T]) {
        let Self { x, rows, down, tile_rows, wide, sums } = self;
        let (k, ranks) = (down.in_features, down.out_features);
        let (tile, stride) = match *rows {
            // One row lies in order as it is.
            [row] => (&x[row as usize * k..][..k], 1),
            _ => {
                rows::lay_out(rows.len(), tile_rows, wide, |row, feature, features| {
                    features.copy_from_slice(&x[rows[row] as usize * k + feature..][..features.len()]);
                });
                (&*wide, tile_rows)
            }
        };
        assert!(sums.len() >= rows.len() * ranks && tile.len() >= stride * k);
        for (panel, weights) in panels.chunks_exact(panel_len(k)).enumerate() {
            let first_rank = panel * PANEL;
            let args = TileArgs {
                x: tile.as_ptr(),
                x_stride: stride,
                weights: weights.as_ptr(),
                k,
                start: ZEROS.as_ptr(),
                start_stride: 0,
                out: sums[first_rank..].as_mut_ptr(),
                out_stride: ranks,
                rows: rows.len(),
                columns: PANEL.min(ranks - first_rank),
                ahead: AHEAD,
            };
            // SAFETY: all of a panel, `k` features of so many rows (asserted), and as many sums, which are this unit's.
            unsafe { panel_tile(isa, args) };
        }
    }
}

/// Some panels of one second matrix, for all rows of its adapter.
struct Widen<'a> {
    /// The matrix's ranks of the adapter's first tile.
    narrow: &'a [f32],
    /// From a tile to the next.
    tile_len: usize,
    tile_rows: usize,
    rows: &'a [u32],
    up: &'a Up,
    panels: std::ops::Range<usize>,
    out: SharedMut<'a, f32>,
    out_stride: usize,
}

impl Kernel for Widen<'_> {
    #[inline(always)]
    fn run<L: Lanes>(self, isa: L) {
        match &self.up.weight.panels {
            Panels::F32(panels) => self.run_on(isa, panels.as_slice()),
            Panels::F16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Bf16(panels) => self.run_on(isa, panels.as_slice()),
            Panels::Int8(_) | Panels::Grouped(_) => unreachable!("adapters are kept in floats"),
        }
    }
}

impl Widen<'_> {
    #[inline(always)]
    fn run_on<L: Lanes, T: PanelElement>(self, isa: L, panels: &[T]) {
        let Self { narrow, tile_len, tile_rows, rows, up, panels: own, out, out_stride } = self;
        let (rank, columns) = (up.weight.in_features, up.weight.out_features);
        let panel_len = panel_len(rank);
        let mut sums = [0.0f32; MAX_TILE_ROWS * PANEL];
        for panel in own {
            let weights = &panels[panel * panel_len..][..panel_len];
            let first_column = panel * PANEL;
            let columns = PANEL.min(columns - first_column);
            for (tile, rows) in rows.chunks(tile_rows).enumerate() {
                let x = &narrow[tile * tile_len..][..rank * tile_rows];
                assert!(rows.len() <= MAX_TILE_ROWS);
                let args = TileArgs {
                    x: x.as_ptr(),
                    x_stride: tile_rows,
                    weights: weights.as_ptr(),
                    k: rank,
                    start: ZEROS.as_ptr(),
                    start_stride: 0,
                    out: sums.as_mut_ptr(),
                    out_stride: PANEL,
                    rows: rows.len(),
                    columns,
                    ahead: if tile == 0 { AHEAD } else { 0 },
                };
                // SAFETY: all of a panel, all ranks of so many rows, and room for as many sums (asserted).
                unsafe { panel_tile(isa, args) };
                for (&row, sums) in rows.iter().zip(sums.chunks_exact(PANEL)) {
                    let first = row as usize * out_stride + up.first_column + first_column;
                    // SAFETY: rows lie apart and have one adapter, whose matrices have columns of their own; panels do not overlap.
                    let out = unsafe { out.slice(first, columns) };
                    for at in (0..columns).step_by(LANES) {
                        let sum = isa.add(isa.read(out, at), isa.read(sums, at));
                        isa.write(out, at, sum);
                    }
                }
            }
        }
    }
}
