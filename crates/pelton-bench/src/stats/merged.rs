//! The summary of one run that several processes made together.

use super::{ClientCost, ClientLimit, Counts, Histograms, Observed, PromptCheck, Rates, Summary, Window};
use crate::metric::Metric;
use crate::plan::{BenchPlan, Case};
use crate::recorder::Row;
use crate::slo::{Attained, Goodput};

/// Processes that begin further apart than this do not make the load that was planned.
const MAX_APART_S: f64 = 1.0;

/// The parts of one run on one clock.
pub struct Merged<'a> {
    /// The load of all parts together.
    pub case: &'a Case,
    /// Of all parts, their parts of the run known.
    pub rows: &'a [Row],
    /// Of all parts.
    pub dropped_us: &'a [u64],
    /// When each part began, in seconds after the first, and what it showed, on its own clock.
    pub parts: &'a [(f64, Summary)],
    /// Whether any part was.
    pub is_interrupted: bool,
    /// Added up, if rows were left out.
    pub histograms: Option<&'a Histograms>,
}

impl Merged<'_> {
    /// From the rows, or where they were left out from sums and histograms.
    ///
    /// # Errors
    /// If a histogram cannot be read.
    pub fn summary(&self, plan: &BenchPlan) -> Result<Summary, String> {
        let mut summary = match self.histograms {
            None => self.of_rows(plan),
            Some(histograms) => self.of_histograms(histograms)?,
        };
        let same = |one: &str, other: &str| kind_of(one).eq(kind_of(other));
        let is_measured = summary.requests.complete > 0;
        for note in self.summaries().flat_map(|part| &part.notes) {
            // What a share without answers says is not true of the whole.
            let is_wrong = is_measured && note == super::NOTHING_COMPLETE;
            if !is_wrong && !summary.notes.iter().any(|known| same(known, note)) {
                summary.notes.push(note.clone());
            }
        }
        let apart_s = self.parts.iter().map(|(began, _)| *began).fold(0.0, f64::max);
        if apart_s > MAX_APART_S {
            summary.notes.push(format!(
                "the processes began up to {apart_s:.1} s apart: before the last and after the first the load was less than planned \
                 (--start-at starts all together)"
            ));
        }
        // Each process was a client of its own.
        summary.client_limits = self.limits();
        let told: Vec<String> = summary.client_limits.iter().map(ClientLimit::to_string).collect();
        summary.notes.retain(|note| !note.contains("the client was") && !note.contains("the client waited"));
        summary.notes.extend(told.into_iter().map(|limit| format!("in one of {} processes {limit}", self.parts.len())));
        Ok(summary)
    }

    fn of_rows(&self, plan: &BenchPlan) -> Summary {
        let span = self.span(|summary| &summary.rates);
        let window = Window { from_us: (span.0 * 1e6).round() as u64, to_us: (span.1 * 1e6).round() as u64 };
        let client = self.cost();
        let (rows, dropped_us) = (self.rows, self.dropped_us);
        Observed { rows, dropped_us, window, client, is_interrupted: self.is_interrupted }.summary(plan, self.case)
    }

    fn of_histograms(&self, histograms: &Histograms) -> Result<Summary, String> {
        let mut errors = std::collections::BTreeMap::new();
        for (kind, more) in self.summaries().flat_map(|part| &part.errors) {
            let sum = errors.entry(kind.clone()).or_insert_with(|| super::ErrorSummary { count: 0, ..more.clone() });
            sum.count += more.count;
        }
        let of = |metric: Metric| histograms.distribution(metric);
        let mut summary = Summary {
            requests: self.counts(),
            errors,
            rates: self.rates(|summary| &summary.rates),
            whole: self.rates(|summary| &summary.whole),
            ttft_ms: of(Metric::Ttft)?,
            itl_ms: of(Metric::Itl)?,
            chunk_gap_ms: of(Metric::ChunkGap)?,
            tpot_ms: of(Metric::Tpot)?,
            e2e_ms: of(Metric::E2e)?,
            service_ttft_ms: of(Metric::ServiceTtft)?,
            service_e2e_ms: of(Metric::ServiceE2e)?,
            lateness_ms: of(Metric::Lateness)?,
            output_tokens: of(Metric::OutputTokens)?,
            prompts: self.prompts(),
            goodput: self.goodput(),
            client: self.cost(),
            client_limits: Vec::new(),
            notes: vec![
                "quantiles come from merged histograms, which keep three digits: each is within 0.1 %".to_owned(),
            ],
        };
        if self.is_interrupted {
            summary.notes.push(super::INTERRUPTED.to_owned());
        }
        Ok(summary)
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.parts.iter().map(|(_, summary)| summary)
    }

    /// From the first part's beginning to the last one's end, on the common clock.
    fn span(&self, of: impl Fn(&Summary) -> &Rates) -> (f64, f64) {
        let spans = self.parts.iter().map(|(began, part)| (began + of(part).from_s, began + of(part).to_s));
        let (from_s, to_s) = spans.fold((f64::INFINITY, 0.0), |all, one| (all.0.min(one.0), f64::max(all.1, one.1)));
        (from_s.min(to_s), to_s)
    }

    /// What happened in all parts, over the whole span.
    fn rates(&self, of: impl Fn(&Summary) -> &Rates) -> Rates {
        let (from_s, to_s) = self.span(&of);
        let sum = |which: fn(&Rates) -> f64| self.over_span(&of, |part| which(of(part)));
        Rates {
            from_s,
            to_s,
            requests_per_s: sum(|rates| rates.requests_per_s),
            output_tokens_per_s: sum(|rates| rates.output_tokens_per_s),
            input_tokens_per_s: sum(|rates| rates.input_tokens_per_s),
            concurrency: sum(|rates| rates.concurrency),
        }
    }

    /// Sum of a rate of the parts, each weighed by its share of the span.
    fn over_span(&self, of: impl Fn(&Summary) -> &Rates, rate: impl Fn(&Summary) -> f64) -> f64 {
        let (from_s, to_s) = self.span(&of);
        let all: f64 = self.summaries().map(|part| rate(part) * (of(part).to_s - of(part).from_s)).sum();
        if to_s > from_s { all / (to_s - from_s) } else { 0.0 }
    }

    fn counts(&self) -> Counts {
        let sum = |which: fn(&Counts) -> u64| self.summaries().map(|part| which(&part.requests)).sum();
        Counts {
            started: sum(|counts| counts.started),
            follow_ups: sum(|counts| counts.follow_ups),
            warmup: sum(|counts| counts.warmup),
            cooldown: sum(|counts| counts.cooldown),
            measured: sum(|counts| counts.measured),
            complete: sum(|counts| counts.complete),
            failed: sum(|counts| counts.failed),
            dropped: sum(|counts| counts.dropped),
            late: sum(|counts| counts.late),
            short: sum(|counts| counts.short),
            counted_by_chunks: sum(|counts| counts.counted_by_chunks),
        }
    }

    fn prompts(&self) -> Option<PromptCheck> {
        let checks = self.summaries().filter_map(|part| part.prompts.clone());
        checks.reduce(|one, other| PromptCheck {
            reported: one.reported + other.reported,
            exact: one.exact + other.exact,
            wished_min: one.wished_min.min(other.wished_min),
            wished_max: one.wished_max.max(other.wished_max),
            max_off: one.max_off.max(other.max_off),
            min: one.min.min(other.min),
            max: one.max.max(other.max),
        })
    }

    /// Shares weigh as many requests as they are of.
    fn goodput(&self) -> Option<Goodput> {
        let parts: Vec<(&Goodput, f64)> = self
            .summaries()
            .filter_map(|part| Some((part.goodput.as_ref()?, (part.requests.measured + part.requests.dropped) as f64)))
            .collect();
        let (first, _) = parts.first()?;
        let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
        let mean = |value: &dyn Fn(&Goodput) -> f64| {
            if all > 0.0 { parts.iter().map(|(part, weight)| weight * value(part)).sum::<f64>() / all } else { 0.0 }
        };
        let share = |n: usize| mean(&|part| part.by_slo.get(n).map_or(0.0, |attained| attained.share));
        Some(Goodput {
            requests_per_s: self.over_span(
                |part| &part.rates,
                |part| part.goodput.as_ref().map_or(0.0, |goodput| goodput.requests_per_s),
            ),
            attainment: mean(&|part| part.attainment),
            by_slo: (0..).zip(&first.by_slo).map(|(n, one)| Attained { slo: one.slo, share: share(n) }).collect(),
        })
    }

    /// The busiest process; processors and costs of all together.
    fn cost(&self) -> Option<ClientCost> {
        let parts: Vec<(&ClientCost, &Counts)> =
            self.summaries().map(|part| Some((part.client.as_ref()?, &part.requests))).collect::<Option<_>>()?;
        let most = |which: fn(&ClientCost) -> f64| parts.iter().map(|(part, _)| which(part)).fold(0.0, f64::max);
        let mean = |which: fn(&ClientCost) -> Option<f64>| {
            let known = parts.iter().filter_map(|(part, counts)| Some((which(part)?, counts.started as f64)));
            let (sum, n) = known.fold((0.0, 0.0), |(sum, n), (value, weight)| (sum + value * weight, n + weight));
            (n > 0.0).then(|| sum / n)
        };
        Some(ClientCost {
            busy: most(|cost| cost.busy),
            waiting: most(|cost| cost.waiting),
            process: parts.iter().map(|(part, _)| part.process).sum(),
            us_per_event: mean(|cost| cost.us_per_event),
            us_per_request: mean(|cost| cost.us_per_request),
            us_per_token: mean(|cost| cost.us_per_token),
        })
    }

    /// The worst of each kind.
    fn limits(&self) -> Vec<ClientLimit> {
        let mut worst: Vec<ClientLimit> = Vec::new();
        for limit in self.summaries().flat_map(|part| &part.client_limits) {
            let kind = std::mem::discriminant(limit);
            match worst.iter_mut().find(|known| std::mem::discriminant(*known) == kind) {
                Some(known) if known.share() < limit.share() => *known = *limit,
                Some(_) => {}
                None => worst.push(*limit),
            }
        }
        worst
    }
}

/// The first words of a note, by which notes of one kind are known whatever their numbers: of a part and of the whole they are the same.
fn kind_of(note: &str) -> impl Iterator<Item = &str> {
    note.split_whitespace().filter(|word| !word.contains(|c: char| c.is_ascii_digit())).take(4)
}
