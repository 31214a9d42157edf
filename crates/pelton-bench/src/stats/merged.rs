//! The summary of one run that several processes made together.

use super::{ClientCost, ClientLimit, Counts, Histograms, Observed, PromptCheck, Rates, Summary, Window};
use crate::metric::Metric;
use crate::plan::{BenchPlan, Case};
use crate::recorder::Row;
use crate::slo::{Attained, Goodput};

/// The parts of one run on one clock.
pub struct Merged<'a> {
    /// The load of all parts together.
    pub case: &'a Case,
    /// Of all parts, their parts of the run known.
    pub rows: &'a [Row],
    /// Of all parts.
    pub dropped_us: &'a [u64],
    /// What each part showed, on its own clock.
    pub parts: &'a [Summary],
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
        Observed { rows, dropped_us, window, client, is_interrupted: false }.summary(plan, self.case)
    }

    fn of_histograms(&self, histograms: &Histograms) -> Result<Summary, String> {
        let mut errors = std::collections::BTreeMap::new();
        for (kind, more) in self.parts.iter().flat_map(|part| &part.errors) {
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
        for note in self.parts.iter().flat_map(|part| &part.notes) {
            if !summary.notes.contains(note) {
                summary.notes.push(note.clone());
            }
        }
        Ok(summary)
    }

    fn span(&self, of: impl Fn(&Summary) -> &Rates) -> (f64, f64) {
        let ends = |(from, to): (f64, f64), rates: &Rates| (from.min(rates.from_s), to.max(rates.to_s));
        let (from_s, to_s) = self.parts.iter().map(of).fold((f64::INFINITY, 0.0), ends);
        (from_s.min(to_s), to_s)
    }

    fn rates(&self, of: impl Fn(&Summary) -> &Rates) -> Rates {
        let (from_s, to_s) = self.span(&of);
        let sum = |which: fn(&Rates) -> f64| self.parts.iter().map(|part| which(of(part))).sum();
        Rates {
            from_s,
            to_s,
            requests_per_s: sum(|rates| rates.requests_per_s),
            output_tokens_per_s: sum(|rates| rates.output_tokens_per_s),
            input_tokens_per_s: sum(|rates| rates.input_tokens_per_s),
            concurrency: sum(|rates| rates.concurrency),
        }
    }

    fn counts(&self) -> Counts {
        let sum = |which: fn(&Counts) -> u64| self.parts.iter().map(|part| which(&part.requests)).sum();
        Counts {
            started: sum(|counts| counts.started),
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
        let checks = self.parts.iter().filter_map(|part| part.prompts.clone());
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
            .parts
            .iter()
            .filter_map(|part| Some((part.goodput.as_ref()?, (part.requests.measured + part.requests.dropped) as f64)))
            .collect();
        let (first, _) = parts.first()?;
        let all: f64 = parts.iter().map(|(_, weight)| weight).sum();
        let mean = |value: &dyn Fn(&Goodput) -> f64| {
            if all > 0.0 { parts.iter().map(|(part, weight)| weight * value(part)).sum::<f64>() / all } else { 0.0 }
        };
        let share = |n: usize| mean(&|part| part.by_slo.get(n).map_or(0.0, |attained| attained.share));
        Some(Goodput {
            requests_per_s: parts.iter().map(|(part, _)| part.requests_per_s).sum(),
            attainment: mean(&|part| part.attainment),
            by_slo: (0..).zip(&first.by_slo).map(|(n, one)| Attained { slo: one.slo, share: share(n) }).collect(),
        })
    }

    /// The busiest process; processors and costs of all together.
    fn cost(&self) -> Option<ClientCost> {
        let parts: Vec<(&ClientCost, &Counts)> =
            self.parts.iter().map(|part| Some((part.client.as_ref()?, &part.requests))).collect::<Option<_>>()?;
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
        for limit in self.parts.iter().flat_map(|part| &part.client_limits) {
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
