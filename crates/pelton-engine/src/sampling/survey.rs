//! What one pass over a row of logits finds out: where the great ones are, and how much all weigh.
//!
//! A row is read in pieces of 1024. Of each, the greatest logit of each lane of sixteen is kept (from these, thresholds follow that few
//! tokens exceed), and the sum of the weights relative to the greatest of the piece. While one piece is weighed the next one's
//! greatest is looked for, so that memory and arithmetic overlap. Sums have one order on every instruction set.

use pelton_backend::TokenId;
use pulp::{Arch, Simd, WithSimd};

use super::draw::{Candidate, likelier_first};
use super::exponential::{Exponential, LANES};

/// Logits weighed relative to the same number: a page of memory.
const PIECE: usize = 1024;
const PIECE_CHUNKS: usize = PIECE / LANES;

/// Thousands of logits, seen once. NaN counts as impossible, positive infinity as the greatest finite number.
#[derive(Debug)]
pub(super) struct Survey {
    arch: Arch,
    temperatures: Vec<f32>,
    /// The greatest logit; negative infinity when all are impossible.
    greatest: f32,
    /// By piece.
    piece_maxima: Vec<f32>,
    /// By piece and lane.
    lane_maxima: Vec<[f32; LANES]>,
    /// By piece and temperature: sums by lane, relative to the greatest of the piece.
    lane_sums: Vec<[f32; LANES]>,
    /// By piece and temperature: sums, relative to the greatest of all.
    piece_sums: Vec<f64>,
    /// Scratch.
    order: Vec<f32>,
    logits: Vec<f32>,
    weights: Vec<f32>,
}

impl Survey {
    pub(super) fn new(arch: Arch) -> Self {
        Self {
            arch,
            temperatures: Vec::new(),
            greatest: f32::NEG_INFINITY,
            piece_maxima: Vec::new(),
            lane_maxima: Vec::new(),
            lane_sums: Vec::new(),
            piece_sums: Vec::new(),
            order: Vec::new(),
            logits: Vec::new(),
            weights: Vec::new(),
        }
    }

    /// Reads `row` (`[vocab]`) and sums its weights at each temperature. What the other functions say, they say of this row.
    pub(super) fn read<const N: usize>(&mut self, row: &[f32], temperatures: [f32; N]) {
        self.temperatures.clear();
        self.temperatures.extend(temperatures);
        let arch = self.arch;
        arch.dispatch(Read { row, exponentials: temperatures.map(Exponential::new), survey: self });
    }

    /// The greatest logit; negative infinity when all are impossible.
    pub(super) fn greatest(&self) -> f32 {
        self.greatest
    }

    /// The token with the greatest logit, of equals the lowest; `None` when all are impossible.
    pub(super) fn likeliest(&self, row: &[f32]) -> Option<TokenId> {
        if self.greatest == f32::NEG_INFINITY {
            return None;
        }
        let piece = self.piece_maxima.iter().position(|&greatest| greatest == self.greatest)?;
        let first = piece * PIECE;
        let within = row[first..].iter().position(|&logit| logit >= self.greatest)?;
        Some(TokenId((first + within) as u32))
    }

    /// The sum of all weights at `temperature`, which was read for; the greatest logit weighs 1.
    pub(super) fn total(&self, temperature: f32) -> f64 {
        self.sums(temperature).sum()
    }

    /// `ln(sum(exp(row)))`, when temperature 1 was read for. Negative infinity when nothing is possible.
    pub(super) fn log_sum(&self) -> f64 {
        f64::from(self.greatest) + self.total(1.0).ln()
    }

    /// The first token in order at which the weights up to it exceed `uniform` (in `0.0..1.0`) of all; `None` when all are impossible.
    pub(super) fn pick(&mut self, row: &[f32], temperature: f32, uniform: f64) -> Option<TokenId> {
        let mut rest = uniform * self.total(temperature);
        let mut picked = None;
        for (piece, sum) in self.sums(temperature).enumerate().filter(|&(_, sum)| sum > 0.0) {
            // Rounding may leave a crumb: then it is the last.
            picked = Some((piece, rest / sum));
            rest -= sum;
            if rest < 0.0 {
                break;
            }
        }
        let (piece, share) = picked?;
        let greatest = self.piece_maxima[piece];
        let logits = &row[piece * PIECE..][..PIECE.min(row.len() - piece * PIECE)];
        self.weights.clear();
        self.weights.resize(logits.len(), 0.0);
        let exponential = Exponential::new(temperature);
        self.arch.dispatch(Weigh { logits, greatest, exponential, weights: &mut self.weights });
        let mut rest = share * self.weights.iter().copied().map(f64::from).sum::<f64>();
        let crossing = self.weights.iter().position(|&weight| {
            rest -= f64::from(weight);
            rest < 0.0
        });
        let within = crossing.or_else(|| self.weights.iter().rposition(|&weight| weight > 0.0))?;
        Some(TokenId((piece * PIECE + within) as u32))
    }

    /// Adds to `candidates`, in order, the possible tokens whose logits are `from` or more and less than `below`. Weights are left open.
    pub(super) fn gather(&self, row: &[f32], from: f32, below: Option<f32>, candidates: &mut Vec<Candidate>) {
        let from = from.max(f32::MIN);
        self.arch.dispatch(Gather { row, piece_maxima: &self.piece_maxima, from, below, candidates });
    }

    /// Leaves in `candidates` the `k` likeliest possible tokens, in no order. When there are no more than `k`, they are in their order
    /// and the answer is false.
    pub(super) fn gather_likeliest(&mut self, row: &[f32], k: usize, candidates: &mut Vec<Candidate>) -> bool {
        candidates.clear();
        if k == 0 {
            return true;
        }
        // `k` pieces or lanes have a logit that is at least the `k`th of their greatest: so have `k` tokens.
        self.order.clear();
        if 2 * k <= self.piece_maxima.len() {
            self.order.extend_from_slice(&self.piece_maxima);
        } else if k <= self.lane_maxima.as_flattened().len() {
            self.order.extend_from_slice(self.lane_maxima.as_flattened());
        }
        let from = if k <= self.order.len() {
            *self.order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::MIN
        };
        self.gather(row, from, None, candidates);
        if candidates.len() > k {
            candidates.select_nth_unstable_by(k - 1, likelier_first);
            candidates.truncate(k);
            return true;
        }
        from > f32::MIN
    }

    /// Weighs `candidates` at `temperature`, relative to the greatest logit of the row.
    pub(super) fn weigh(&mut self, candidates: &mut [Candidate], temperature: f32) {
        self.logits.clear();
        self.logits.extend(candidates.iter().map(|candidate| candidate.logit));
        self.weights.clear();
        self.weights.resize(candidates.len(), 0.0);
        let exponential = Exponential::new(temperature);
        let (logits, greatest) = (&self.logits, self.greatest);
        self.arch.dispatch(Weigh { logits, greatest, exponential, weights: &mut self.weights });
        for (candidate, &weight) in candidates.iter_mut().zip(&self.weights) {
            candidate.weight = weight.into();
        }
    }

    /// By piece, at a temperature that was read for.
    fn sums(&self, temperature: f32) -> impl Iterator<Item = f64> {
        let which = self.temperatures.iter().position(|&other| other == temperature);
        let which = which.expect("the row was read for this temperature");
        self.piece_sums.iter().skip(which).step_by(self.temperatures.len()).copied()
    }
}

/// [`Survey::read`], compiled for each instruction set.
struct Read<'a, const N: usize> {
    row: &'a [f32],
    exponentials: [Exponential; N],
    survey: &'a mut Survey,
}

impl<const N: usize> WithSimd for Read<'_, N> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { row, exponentials, survey } = self;
        survey.piece_maxima.clear();
        survey.lane_maxima.clear();
        survey.lane_sums.clear();
        survey.piece_sums.clear();
        survey.greatest = f32::NEG_INFINITY;

        let (chunks, rest) = row.as_chunks::<LANES>();
        let (pieces, rest_of_chunks) = chunks.as_chunks::<PIECE_CHUNKS>();
        let mut last = [[f32::NEG_INFINITY; LANES]; PIECE_CHUNKS];
        last[..rest_of_chunks.len()].copy_from_slice(rest_of_chunks);
        last[rest_of_chunks.len()][..rest.len()].copy_from_slice(rest);
        let last = &last[..rest_of_chunks.len() + usize::from(!rest.is_empty())];
        let piece_at = |index: usize| if index < pieces.len() { &pieces[index][..] } else { last };

        let mut maxima = lane_maxima(piece_at(0));
        for index in 0..row.len().div_ceil(PIECE) {
            let greatest = finite(fold(maxima, greater));
            survey.lane_maxima.push(maxima);
            survey.piece_maxima.push(greatest);
            survey.greatest = greater(survey.greatest, greatest);
            let next = if index < pieces.len() { piece_at(index + 1) } else { &[] };
            let sums;
            (sums, maxima) = weigh_piece(piece_at(index), greatest, exponentials, next);
            // Folding the lanes here would tempt the compiler to keep them apart.
            survey.lane_sums.extend(sums);
        }

        for (piece, &greatest) in survey.piece_maxima.iter().enumerate() {
            for (which, exponential) in exponentials.iter().enumerate() {
                let sum = fold(survey.lane_sums[piece * N + which], |a, b| a + b);
                let [factor, ..] = exponential.weights_or_zero([greatest - survey.greatest; LANES]);
                survey.piece_sums.push(f64::from(sum) * f64::from(factor));
            }
        }
    }
}

/// Sums of the weights of `piece` by lane, relative to `greatest`; and the greatest of `next` by lane. Neither has more than
/// [`PIECE_CHUNKS`]; `next` has no more than `piece`.
#[inline(always)]
fn weigh_piece<const N: usize>(
    piece: &[[f32; LANES]],
    greatest: f32,
    exponentials: [Exponential; N],
    next: &[[f32; LANES]],
) -> ([[f32; LANES]; N], [f32; LANES]) {
    let mut clean = [[0.0; LANES]; PIECE_CHUNKS];
    let piece = if greatest == f32::MAX {
        let clean = &mut clean[..piece.len()];
        clean.copy_from_slice(piece);
        clean.as_flattened_mut().iter_mut().for_each(|logit| *logit = finite(*logit));
        clean
    } else {
        piece
    };
    let mut sums = [[0.0; LANES]; N];
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let (beside_next, alone) = piece.split_at(next.len());
    for (logits, ahead) in beside_next.iter().zip(next) {
        for (maximum, &logit) in maxima.iter_mut().zip(ahead) {
            *maximum = greater(*maximum, logit);
        }
        add_weights(&mut sums, logits, greatest, exponentials);
    }
    for logits in alone {
        add_weights(&mut sums, logits, greatest, exponentials);
    }
    (sums, maxima)
}

#[inline(always)]
fn add_weights<const N: usize>(
    sums: &mut [[f32; LANES]; N],
    logits: &[f32; LANES],
    greatest: f32,
    exponentials: [Exponential; N],
) {
    let mut differences = [0.0; LANES];
    for (difference, &logit) in differences.iter_mut().zip(logits) {
        *difference = logit - greatest;
    }
    for (sum, exponential) in sums.iter_mut().zip(exponentials) {
        for (sum, weight) in sum.iter_mut().zip(exponential.weights(differences)) {
            *sum += weight;
        }
    }
}

#[inline(always)]
fn lane_maxima(piece: &[[f32; LANES]]) -> [f32; LANES] {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for logits in piece {
        for (maximum, &logit) in maxima.iter_mut().zip(logits) {
            *maximum = greater(*maximum, logit);
        }
    }
    maxima
}

/// `b` when it is greater, `a` otherwise: NaN never gets in.
#[inline(always)]
fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// Leaves NaN as it is.
#[inline(always)]
fn finite(logit: f32) -> f32 {
    if logit > f32::MAX { f32::MAX } else { logit }
}

/// Halves against halves.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// Weights of `logits` relative to `greatest`; zero for what is impossible.
struct Weigh<'a> {
    logits: &'a [f32],
    greatest: f32,
    exponential: Exponential,
    /// As many as `logits`.
    weights: &'a mut [f32],
}

impl WithSimd for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (weights, logits) in self.weights.chunks_mut(LANES).zip(self.logits.chunks(LANES)) {
            let mut differences = [f32::NEG_INFINITY; LANES];
            for (difference, &logit) in differences.iter_mut().zip(logits) {
                *difference = finite(logit) - self.greatest;
            }
            weights.copy_from_slice(&self.exponential.weights_or_zero(differences)[..logits.len()]);
        }
    }
}

/// [`Survey::gather`], compiled for each instruction set.
struct Gather<'a> {
    row: &'a [f32],
    piece_maxima: &'a [f32],
    from: f32,
    below: Option<f32>,
    candidates: &'a mut Vec<Candidate>,
}

impl WithSimd for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { row, piece_maxima, from, below, candidates } = self;
        let mut gather = |first: usize, logits: &[f32]| {
            for (within, &logit) in logits.iter().enumerate() {
                if logit >= from && below.is_none_or(|below| logit < below) {
                    candidates.push(Candidate { token: (first + within) as u32, logit: finite(logit), weight: 0.0 });
                }
            }
        };
        for (index, (piece, &greatest)) in row.chunks(PIECE).zip(piece_maxima).enumerate() {
            if greatest < from {
                continue;
            }
            let (chunks, rest) = piece.as_chunks::<LANES>();
            for (chunk_index, chunk) in chunks.iter().enumerate() {
                let mut is_any = false;
                for &logit in chunk {
                    is_any |= logit >= from;
                }
                if is_any {
                    gather(index * PIECE + chunk_index * LANES, chunk);
                }
            }
            gather(index * PIECE + chunks.len() * LANES, rest);
        }
    }
}
