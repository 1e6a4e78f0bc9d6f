//! Disks that are lost, fall behind, fill up, or fail.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::Channel;
use triune_node::pb::etcdserverpb::cluster_client::ClusterClient;
use triune_node::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use triune_node::pb::etcdserverpb::{HashKvRequest, MemberListRequest};

use super::cluster::{Cluster, Server};
use super::{GoodClient, channel, get, put, runtime, serving, until};

async fn hash_kv(channel: &Channel, revision: i64) -> Option<u32> {
    let request = HashKvRequest { revision };
    Some(MaintenanceClient::new(channel.clone()).hash_kv(request).await.ok()?.into_inner().hash)
}

/// Writes `count` keys of `bytes` bytes, 32 at a time.
async fn fill(endpoint: &str, prefix: &str, count: usize, bytes: usize) -> i64 {
    let channel = channel(endpoint);
    let value = Arc::new(vec![b'x'; bytes]);
    let mut tasks = JoinSet::new();
    for lane in 0..32 {
        let (channel, value, prefix) = (channel.clone(), Arc::clone(&value), prefix.to_owned());
        tasks.spawn(async move {
            let mut last = 0;
            for n in (lane..count).step_by(32) {
                last = put(&channel, &format!("{prefix}{n}"), &value).await.unwrap();
            }
            last
        });
    }
    tasks.join_all().await.into_iter().max().unwrap()
}

#[test]
fn a_wiped_member_comes_back_by_itself_and_votes_again() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(Server::Triune { disk: "real" });
        let endpoints = cluster.endpoints();
        for endpoint in &endpoints {
            serving(&channel(endpoint)).await;
        }
        let members = |list: triune_node::pb::etcdserverpb::MemberListResponse| {
            let mut ids: Vec<_> = list.members.iter().map(|m| (m.name.clone(), m.id, m.is_learner)).collect();
            ids.sort();
            ids
        };
        let list = || async {
            let mut client = ClusterClient::new(channel(&cluster.endpoints()[0]));
            client.member_list(MemberListRequest { linearizable: true }).await.ok().map(tonic::Response::into_inner)
        };
        let before = members(until("members are listed", list).await);
        assert_eq!(before.len(), 3);
        fill(&endpoints[0], "k", 200, 100).await;
        let good = GoodClient::start(&endpoints[0]);
        cluster.kill(2);
        std::fs::remove_dir_all(cluster.data(2)).unwrap();
        cluster.launch(2);
        let wiped = channel(&endpoints[2]);
        serving(&wiped).await;
        assert!(get(&wiped, "k199", true).await.unwrap().is_some(), "the state is back");
        // It keeps its member id, and becomes a voter again.
        until("it votes again", || async {
            let mut client = ClusterClient::new(channel(&endpoints[0]));
            let now = client.member_list(MemberListRequest { linearizable: true }).await.ok()?.into_inner();
            (members(now) == before).then_some(())
        })
        .await;
        good.saw_no_failure().await;
        // Its vote counts: with another member gone the two that are left serve.
        cluster.kill(1);
        until("the cluster serves with its vote", || async { put(&wiped, "after", b"1").await.ok() }).await;
    });
}

#[test]
fn a_follower_far_behind_catches_up_while_writes_go_on() {
    runtime().block_on(async {
        let mut cluster =
            Cluster::start_with(Server::Triune { disk: "real" }, &["--consensus-snapshot-entries", "500"]);
        let endpoints = cluster.endpoints();
        for endpoint in &endpoints {
            serving(&channel(endpoint)).await;
        }
        cluster.kill(2);
        fill(&endpoints[0], "behind", 4_000, 256).await;
        let good = GoodClient::start(&endpoints[0]);
        cluster.launch(2);
        let late = channel(&endpoints[2]);
        serving(&late).await;
        let revision = put(&late, "last", b"1").await.unwrap();
        let hashes = [hash_kv(&channel(&endpoints[0]), revision).await, hash_kv(&late, revision).await];
        assert!(hashes[0].is_some() && hashes[0] == hashes[1], "{hashes:?}");
        assert!(cluster.log_text(2).contains("snapshot"), "it came by a snapshot, not entry by entry");
        good.saw_no_failure().await;
    });
}

/// `triune dev` in a directory of its own.
struct Dev {
    child: Child,
    offset: u16,
    dir: std::path::PathBuf,
}

impl Dev {
    fn start(extra: &[&str]) -> (Self, String) {
        let offset = super::cluster::free_ports_offset();
        let dir = super::cluster::scratch();
        let mut command = Command::new(env!("CARGO_BIN_EXE_triune"));
        command.args(["dev", "--port-offset", &offset.to_string(), "--data-dir"]).arg(&dir).args(extra);
        let log = std::fs::File::create(dir.with_extension("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut block = String::new();
        for line in out.lines() {
            let line = line.unwrap();
            block.push_str(&line);
            block.push('\n');
            if block.contains("etcdctl") {
                break;
            }
        }
        (Self { child, offset, dir }, block)
    }

    fn endpoint(&self, member: u16) -> String {
        format!("127.0.0.1:{}", 2_379 + 100 * (member - 1) + self.offset)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
            let _ = std::fs::remove_file(self.dir.with_extension("log"));
        }
    }
}

#[test]
fn dev_says_how_to_talk_to_it_once_all_are_ready() {
    runtime().block_on(async {
        let (dev, block) = Dev::start(&[]);
        for member in 1..=3 {
            assert!(block.contains(&dev.endpoint(member)), "{block}");
            put(&channel(&dev.endpoint(member)), "ready", b"1").await.unwrap();
        }
    });
}

#[test]
fn a_member_of_dev_whose_disk_fails_leaves_the_others_serving_and_comes_back() {
    runtime().block_on(async {
        let (dev, _) = Dev::start(&["--disk", "fail-sync=60"]);
        let (first, second) = (channel(&dev.endpoint(1)), channel(&dev.endpoint(2)));
        // Drives the first member's disk to its failing sync; a call there may fail when it comes.
        until("the first member's disk fails", || async {
            let _ = put(&second, "drive", b"1").await;
            dev.log().contains("poisoned").then_some(())
        })
        .await;
        // A leader that falls takes an election with it; from there on the other two serve.
        until("the others serve", || async { put(&second, "while", b"1").await.ok() }).await;
        let good = GoodClient::start(&dev.endpoint(2));
        serving(&first).await;
        assert_eq!(get(&first, "while", false).await.unwrap(), Some(b"1".to_vec()));
        tokio::time::sleep(Duration::from_millis(200)).await;
        good.saw_no_failure().await;
    });
}

/// A 64 MiB tmpfs under each member; needs root, so it runs where the foreign clients run.
#[cfg(feature = "clients")]
#[test]
fn a_full_disk_refuses_writes_loses_nothing_and_is_left_by_deleting() {
    use tonic::Code;
    use triune_node::pb::etcdserverpb::kv_client::KvClient;
    use triune_node::pb::etcdserverpb::{
        AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, alarm_request::AlarmAction,
    };

    struct Mounts(Vec<std::path::PathBuf>);
    impl Drop for Mounts {
        fn drop(&mut self) {
            for dir in &self.0 {
                let _ = Command::new("umount").arg(dir).status();
            }
        }
    }

    runtime().block_on(async {
        let mut cluster = Cluster::prepare(Server::Triune { disk: "real" });
        let mut mounts = Mounts(Vec::new());
        for at in 0..3 {
            let dir = cluster.data(at);
            std::fs::create_dir_all(&dir).unwrap();
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&dir).status();
            assert!(mounted.unwrap().success(), "a tmpfs can be mounted");
            mounts.0.push(dir);
        }
        (0..3).for_each(|at| cluster.launch(at));
        let endpoints = cluster.endpoints();
        for endpoint in &endpoints {
            serving(&channel(endpoint)).await;
        }
        let client = channel(&endpoints[0]);
        let mut written = Vec::new();
        let refusal = loop {
            let key = format!("full{}", written.len());
            match put(&client, &key, &vec![b'y'; 256 << 10]).await {
                Ok(_) => written.push(key),
                Err(status) if status.code() == Code::ResourceExhausted => break status,
                Err(_) => {} // an unknown outcome while the disk fills
            }
            assert!(written.len() < 2_000, "the disk never fills");
        };
        assert_eq!(refusal.message(), "etcdserver: mvcc: database space exceeded");
        let get_alarms = AlarmRequest { action: AlarmAction::Get.into(), ..AlarmRequest::default() };
        until("the alarm is raised", || async {
            let alarms = MaintenanceClient::new(client.clone()).alarm(get_alarms).await.ok()?.into_inner().alarms;
            alarms.iter().any(|a| a.alarm() == AlarmType::Nospace).then_some(())
        })
        .await;
        for key in &written {
            assert!(get(&client, key, false).await.unwrap().is_some(), "{key} was acknowledged and is lost");
        }
        // Deletes and compaction go on.
        let delete =
            DeleteRangeRequest { key: "full".into(), range_end: "fulm".into(), ..DeleteRangeRequest::default() };
        let revision = until("a delete is taken", || async {
            let done = KvClient::new(client.clone()).delete_range(delete.clone()).await.ok()?;
            Some(done.into_inner().header.unwrap().revision)
        })
        .await;
        let compact = CompactionRequest { revision, physical: true };
        until("a compaction is taken", || async {
            match KvClient::new(client.clone()).compact(compact).await {
                Ok(_) => Some(()),
                Err(status) => status.message().contains("compacted").then_some(()),
            }
        })
        .await;
        // With the alarm cleared and space freed, writes are taken again.
        let clear = AlarmRequest {
            action: AlarmAction::Deactivate.into(),
            alarm: AlarmType::Nospace.into(),
            ..AlarmRequest::default()
        };
        until("writes are taken again", || async {
            let _ = MaintenanceClient::new(client.clone()).alarm(clear).await;
            put(&client, "again", b"1").await.ok()
        })
        .await;
        cluster.check_running();
        cluster.kill_all();
    });
}
