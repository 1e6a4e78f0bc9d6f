//! The admin port: `/metrics`, `/healthz`, `/readyz`, over HTTP/1.
//!
//! One registry a member, nothing global: several members live in one process.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use triune_transport::Nanos;

use crate::doors::Bridge;
use crate::member::api::{AlarmKind, Call, Reply, Status};

/// How long a scrape waits for the member.
const WITHIN: Duration = Duration::from_secs(2);

/// A figure that the shell, not the member, knows: name, help, whether it only grows, value.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name, without a unit's suffix doubled.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Counter or gauge.
    pub counter: bool,
    /// Its labels, ready to print, `key="value"`, or empty.
    pub labels: String,
    /// Its value now.
    pub value: f64,
}

/// What the admin port shows of one member.
pub struct Admin {
    /// The way to the member.
    pub bridge: Arc<Bridge>,
    /// What the shell adds: log, network, process.
    pub figures: Box<dyn Fn() -> Vec<Figure> + Send + Sync>,
    /// Whether the doors are open (and not closing again).
    pub open: Box<dyn Fn() -> bool + Send + Sync>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// The pages.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(self)
    }

    async fn status(&self) -> Option<Box<Status>> {
        let call = self.bridge.call(Call::Status, Some(Nanos::from(WITHIN)), false);
        match tokio::time::timeout(WITHIN, call).await {
            Ok(Ok((_, Reply::Status(status)))) => Some(status),
            _ => None,
        }
    }

    /// Why this member is not ready; `None` when it is.
    pub async fn not_ready(&self) -> Option<&'static str> {
        match self.status().await {
            None => Some("the member does not answer"),
            Some(status) if status.leader == 0 => Some("no leader"),
            Some(status) if !status.caught_up => Some("catching up"),
            Some(_) if !(self.open)() => Some("doors closed"),
            Some(_) => None,
        }
    }
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    match admin.not_ready().await {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let mut figures = (admin.figures)();
    if let Some(status) = admin.status().await {
        figures.extend(of_status(&status));
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], render(&figures)).into_response()
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floating point by their format")]
fn of_status(status: &Status) -> Vec<Figure> {
    let figure =
        |name, help, counter, value: u64| Figure { name, help, counter, labels: String::new(), value: value as f64 };
    let alarms = |kind| status.alarms.iter().filter(|(_, k)| *k == kind).count() as f64;
    let alarm = |kind, label: &str| Figure {
        name: "triune_alarms",
        help: "Alarms in force.",
        counter: false,
        labels: format!("kind=\"{label}\""),
        value: alarms(kind),
    };
    vec![
        figure("triune_has_leader", "Whether a leader is known.", false, u64::from(status.leader != 0)),
        figure(
            "triune_is_leader",
            "Whether this member leads.",
            false,
            u64::from(status.role == triune_consensus::Role::Leader),
        ),
        figure(
            "triune_caught_up",
            "Whether this member has applied what was committed.",
            false,
            status.caught_up.into(),
        ),
        figure("triune_leader_changes", "Leader changes seen since the start.", true, status.leader_changes),
        figure("triune_commit_index", "Last index known committed.", false, status.commit),
        figure("triune_applied_index", "Last index applied.", false, status.applied),
        figure("triune_db_bytes", "Bytes of the state, history included.", false, status.db_bytes),
        figure("triune_db_in_use_bytes", "Bytes of the state in use.", false, status.db_bytes_in_use),
        figure("triune_keys", "Keys now.", false, status.keys),
        figure("triune_watchers", "Watchers at this member.", false, status.watchers),
        figure("triune_leases", "Leases.", false, status.leases),
        figure("triune_pending_proposals", "Proposals that wait for their apply here.", false, status.pending),
        figure("triune_proposals", "Proposals made at this member.", true, status.proposals.0),
        figure("triune_proposals_failed", "Proposals that failed or timed out.", true, status.proposals.1),
        alarm(AlarmKind::NoSpace, "nospace"),
        alarm(AlarmKind::Corrupt, "corrupt"),
    ]
}

/// OpenMetrics text: figures of one name together, a counter's sample with its `_total`.
fn render(figures: &[Figure]) -> String {
    let mut text = String::new();
    let mut last = "";
    for figure in figures {
        if figure.name != last {
            let kind = if figure.counter { "counter" } else { "gauge" };
            let _ = writeln!(text, "# TYPE {} {kind}\n# HELP {} {}", figure.name, figure.name, figure.help);
            last = figure.name;
        }
        let total = if figure.counter { "_total" } else { "" };
        let labels = if figure.labels.is_empty() { String::new() } else { format!("{{{}}}", figure.labels) };
        let _ = writeln!(text, "{}{total}{labels} {}", figure.name, figure.value);
    }
    text.push_str("# EOF\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_get_their_suffix_and_names_their_words_once() {
        let figure = |name, counter, labels: &str, value| Figure {
            name,
            help: "Words.",
            counter,
            labels: labels.to_owned(),
            value,
        };
        let text = render(&[
            figure("a", true, "", 3.0),
            figure("b", false, "k=\"x\"", 1.5),
            figure("b", false, "k=\"y\"", 0.0),
        ]);
        let expected = "# TYPE a counter\n# HELP a Words.\na_total 3\n# TYPE b gauge\n# HELP b Words.\nb{k=\"x\"} 1.5\nb{k=\"y\"} 0\n# EOF\n";
        assert_eq!(text, expected);
    }
}
