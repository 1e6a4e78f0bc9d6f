//! Commands that ask a running cluster: `status`, `member list`. They work with any etcd-compatible server.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tonic::transport::{Channel, Endpoint};

use crate::pb::etcdserverpb::{
    MemberListRequest, StatusRequest, StatusResponse, cluster_client::ClusterClient,
    maintenance_client::MaintenanceClient,
};

/// Whom to ask.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Addresses of the etcd doors, by commas
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',', default_value = "127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// Seconds to wait for each answer
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
}

/// Runs one asking command to its end, on this thread.
pub(super) fn run(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.context("cannot start the runtime").and_then(|runtime| runtime.block_on(command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("triune: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line for each endpoint, and for one that does not answer why. Fails if any did not.
pub(super) async fn status(target: Target) -> anyhow::Result<ExitCode> {
    let mut table =
        Table::new(&["ENDPOINT", "MEMBER", "VERSION", "ROLE", "TERM", "INDEX", "APPLIED", "REVISION", "SIZE"]);
    let mut code = ExitCode::SUCCESS;
    for endpoint in &target.endpoints {
        match ask_status(endpoint, target.timeout).await {
            Ok(status) => table.push(status_row(endpoint, &status)),
            Err(error) => {
                code = ExitCode::FAILURE;
                table.push(vec![endpoint.clone(), format!("{error:#}")]);
            }
        }
    }
    print_line(&table.to_string());
    Ok(code)
}

/// Prints the members as the first endpoint that answers knows them.
pub(super) async fn member_list(target: Target) -> anyhow::Result<ExitCode> {
    let mut last = anyhow::anyhow!("no endpoint given");
    for endpoint in &target.endpoints {
        match ask_members(endpoint, target.timeout).await {
            Ok(table) => {
                print_line(&table.to_string());
                return Ok(ExitCode::SUCCESS);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_status(endpoint: &str, timeout_s: u64) -> anyhow::Result<StatusResponse> {
    let mut client = MaintenanceClient::new(connect(endpoint, timeout_s).await?);
    Ok(client.status(StatusRequest {}).await.map_err(|status| refused(endpoint, &status))?.into_inner())
}

async fn ask_members(endpoint: &str, timeout_s: u64) -> anyhow::Result<Table> {
    let mut client = ClusterClient::new(connect(endpoint, timeout_s).await?);
    let request = MemberListRequest { linearizable: true };
    let members = client.member_list(request).await.map_err(|status| refused(endpoint, &status))?.into_inner().members;
    let mut table = Table::new(&["ID", "NAME", "ROLE", "PEERS", "CLIENTS"]);
    for member in members {
        let role = if member.is_learner { "learner" } else { "voter" };
        let (peers, clients) = (member.peer_ur_ls.join(","), member.client_ur_ls.join(","));
        table.push(vec![format!("{:016x}", member.id), member.name, role.to_owned(), peers, clients]);
    }
    Ok(table)
}

async fn connect(endpoint: &str, timeout_s: u64) -> anyhow::Result<Channel> {
    let bare = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let timeout = Duration::from_secs(timeout_s.max(1));
    let built =
        Endpoint::from_shared(format!("http://{bare}")).with_context(|| format!("{endpoint} is no host:port"))?;
    let built = built.connect_timeout(timeout).timeout(timeout);
    built.connect().await.with_context(|| format!("nobody answers at {endpoint}; is a member running there?"))
}

fn refused(endpoint: &str, status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{endpoint} answered {:?}: {}", status.code(), status.message())
}

fn status_row(endpoint: &str, status: &StatusResponse) -> Vec<String> {
    let header = status.header.unwrap_or_default();
    let role = match status.leader {
        0 => "no leader",
        leader if leader == header.member_id => "leader",
        _ if status.is_learner => "learner",
        _ => "follower",
    };
    vec![
        endpoint.to_owned(),
        format!("{:016x}", header.member_id),
        status.version.clone(),
        role.to_owned(),
        status.raft_term.to_string(),
        status.raft_index.to_string(),
        status.raft_applied_index.to_string(),
        header.revision.to_string(),
        size(status.db_size),
    ]
}

fn size(bytes: i64) -> String {
    let bytes = u64::try_from(bytes).unwrap_or(0);
    match bytes {
        0..=1_023 => format!("{bytes} B"),
        1_024..=1_048_575 => format!("{} KiB", bytes >> 10),
        1_048_576..=1_073_741_823 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[expect(clippy::print_stdout, reason = "the table is this command's product")]
fn print_line(text: &str) {
    println!("{text}");
}

/// Columns as wide as their widest cell, two spaces apart.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// A row shorter than the head is a remark, which widens no column.
    fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }

    fn width(&self, column: usize) -> usize {
        let columns = self.rows.first().map_or(0, Vec::len);
        let whole = self.rows.iter().filter(|row| row.len() == columns || column == 0);
        whole.filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, row) in self.rows.iter().enumerate() {
            let cells =
                row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = self.width(column)));
            let line = cells.collect::<Vec<_>>().join("  ");
            write!(f, "{}{}", if at == 0 { "" } else { "\n" }, line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_remarks_widen_nothing() {
        let mut table = Table::new(&["A", "BB", "C"]);
        table.push(vec!["xxx".into(), "y".into(), "z".into()]);
        table.push(vec!["q".into(), "a long remark".into()]);
        assert_eq!(table.to_string(), "A    BB  C\nxxx  y   z\nq    a long remark");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in
            [(-1, "0 B"), (1023, "1023 B"), (20_480, "20 KiB"), (1 << 21, "2 MiB"), (3 << 29, "1.5 GiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
