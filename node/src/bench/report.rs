//! The result of a run, as text for people and as JSON for tables.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::{Options, process::Used, watch::Deliveries, wire::CallError};

/// Calls that failed, by reason.
#[derive(Debug, Default)]
pub(super) struct Errors {
    by_reason: BTreeMap<String, u64>,
}

/// All that was measured.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) options: Options,
    pub(super) elapsed: Duration,
    pub(super) latency: Histogram<u64>,
    pub(super) errors: Errors,
    pub(super) deliveries: Option<Deliveries>,
    pub(super) server: Used,
    pub(super) own: Used,
}

impl Errors {
    pub(super) fn count(&mut self, error: &CallError) {
        let reason = error.to_string();
        let full = self.by_reason.len() >= REASONS_MAX && !self.by_reason.contains_key(&reason);
        *self.by_reason.entry(if full { "other".to_owned() } else { reason }).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.by_reason.values().sum()
    }
}

impl Report {
    /// Whether the figures mean anything: something succeeded, and no watcher missed an event.
    pub(super) fn is_sound(&self) -> bool {
        !self.latency.is_empty() && self.deliveries.as_ref().is_none_or(|deliveries| deliveries.missing == 0)
    }

    /// Prints it to stdout.
    #[expect(clippy::print_stdout, reason = "the report is this command's product")]
    pub(super) fn print(&self, json: bool) {
        if json {
            println!("{}", self.json());
        } else {
            print!("{}", self.text());
        }
    }

    fn ops_per_second(&self) -> f64 {
        self.latency.len() as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    fn per_op_us(&self, used: &Used) -> f64 {
        used.cpu.as_secs_f64() * 1e6 / (self.latency.len().max(1) as f64)
    }

    fn text(&self) -> String {
        let options = &self.options;
        let pace =
            options.rate.map_or_else(|| "closed loop".to_owned(), |rate| format!("open loop, {rate} due a second"));
        let mut text = format!(
            "workload    {}, {pace}, {} clients, {} connections, {} keys, {} B values, seed {}\nendpoints   {}\n\
             time        {:.2} s\nops         {} ok, {} failed, {:.0} ops/s\nlatency     {}\n",
            options.workload.name(),
            options.clients,
            options.connections(),
            options.keys,
            options.value_bytes,
            options.seed,
            options.endpoints.join(","),
            self.elapsed.as_secs_f64(),
            self.latency.len(),
            self.errors.total(),
            self.ops_per_second(),
            percentiles_text(&self.latency),
        );
        if let Some(deliveries) = &self.deliveries {
            let rate = deliveries.latency.len() as f64 / deliveries.elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
            text += &format!(
                "deliveries  {} to {} watchers, {} missing, {rate:.0} a second\ndelay       {}\n",
                deliveries.latency.len(),
                options.watchers,
                deliveries.missing,
                percentiles_text(&deliveries.latency),
            );
        }
        if !options.pids.is_empty() {
            let rss: Vec<String> = self.server.rss_bytes.iter().map(|bytes| format!("{} MiB", bytes >> 20)).collect();
            text += &format!(
                "server CPU  {:.1} us an operation, {:.2} cores, all {} processes\nserver RSS  {}\n",
                self.per_op_us(&self.server),
                self.server.cpu.as_secs_f64() / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
                options.pids.len(),
                rss.join(", "),
            );
        }
        text += &format!("own CPU     {:.1} us an operation\n", self.per_op_us(&self.own));
        for (reason, count) in &self.errors.by_reason {
            text += &format!("failed      {count} x {reason}\n");
        }
        text
    }

    fn json(&self) -> Value {
        let options = &self.options;
        let deliveries = self.deliveries.as_ref().map(|deliveries| {
            json!({
                "watchers": options.watchers, "count": deliveries.latency.len(), "missing": deliveries.missing,
                "seconds": deliveries.elapsed.as_secs_f64(), "delay_us": percentiles_json(&deliveries.latency),
            })
        });
        let server = (!options.pids.is_empty()).then(|| {
            json!({
                "cpu_seconds": self.server.cpu.as_secs_f64(), "cpu_us_per_op": self.per_op_us(&self.server),
                "rss_bytes": self.server.rss_bytes,
            })
        });
        json!({
            "workload": options.workload.name(), "endpoints": options.endpoints, "clients": options.clients,
            "connections": options.connections(), "rate": options.rate, "keys": options.keys,
            "value_bytes": options.value_bytes, "read_percent": options.read_percent, "seed": options.seed,
            "seconds": self.elapsed.as_secs_f64(), "ops": self.latency.len(), "errors": self.errors.by_reason,
            "ops_per_second": self.ops_per_second(), "latency_us": percentiles_json(&self.latency),
            "deliveries": deliveries, "server": server, "own_cpu_us_per_op": self.per_op_us(&self.own),
        })
    }
}

fn percentiles_text(latency: &Histogram<u64>) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    let at = |quantile| ms(latency.value_at_quantile(quantile));
    format!("p50 {:.3} ms, p99 {:.3} ms, p99.9 {:.3} ms, max {:.3} ms", at(0.5), at(0.99), at(0.999), ms(latency.max()))
}

fn percentiles_json(latency: &Histogram<u64>) -> Value {
    let at = |quantile| latency.value_at_quantile(quantile);
    json!({
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99.9": at(0.999), "max": latency.max(),
        "mean": latency.mean(),
    })
}

/// Different reasons kept; the rest count as "other".
const REASONS_MAX: usize = 20;
