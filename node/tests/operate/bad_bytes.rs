//! Garbage, truncated, oversize and slow bytes on every port.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use super::cluster::{Cluster, Server};
use super::{GoodClient, channel, put, runtime, serving};

/// What is thrown at each port: noise, the beginnings of protocols, and lengths that promise gigabytes.
fn rubbish() -> Vec<Vec<u8>> {
    let mut noise = Vec::new();
    let mut x = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..8_192 {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.extend_from_slice(&x.to_be_bytes());
    }
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame_too_large = preface.clone();
    frame_too_large.extend_from_slice(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    let mut hello_too_large = b"triune\r\n".to_vec();
    hello_too_large.extend_from_slice(&[1, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    vec![
        noise,
        vec![0; 4_096],
        vec![0xff; 4_096],
        preface[..10].to_vec(),
        frame_too_large,
        hello_too_large,
        b"triune\r\n\x01\x00".to_vec(),
        b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
    ]
}

/// Sends `bytes` and says whether the server closed, or answered, within `within`.
async fn throw(addr: &str, bytes: &[u8], within: Duration) -> bool {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let mut answer = [0; 1_024];
    timeout(within, async { while stream.read(&mut answer).await.is_ok_and(|n| n > 0) {} }).await.is_ok()
}

#[test]
fn bad_bytes_on_every_port_harm_nobody_else() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(Server::Triune { disk: "real" });
        for endpoint in cluster.endpoints() {
            serving(&channel(&endpoint)).await;
        }
        let good: Vec<_> = cluster.endpoints().iter().map(|endpoint| GoodClient::start(endpoint)).collect();
        let ports: Vec<_> = cluster.endpoints().into_iter().chain(cluster.peer_addrs()).collect();
        for port in &ports {
            for bytes in rubbish() {
                let _ = throw(port, &bytes, Duration::from_millis(50)).await;
            }
        }
        // Whoever says nothing, or stops in the middle of a hello, is shown the door after ten seconds.
        let silent = cluster
            .peer_addrs()
            .into_iter()
            .map(|addr| tokio::spawn(async move { throw(&addr, b"triune", Duration::from_secs(20)).await }));
        for silent in silent.collect::<Vec<_>>() {
            assert!(silent.await.unwrap(), "a connection without a handshake stays open");
        }
        cluster.check_running();
        for good in good {
            good.saw_no_failure().await;
        }
    });
}

#[test]
fn a_request_over_the_limit_is_refused_with_etcds_words_and_harms_nobody_else() {
    runtime().block_on(async {
        let mut cluster = Cluster::start(Server::Triune { disk: "real" });
        let endpoints = cluster.endpoints();
        for endpoint in &endpoints {
            serving(&channel(endpoint)).await;
        }
        let good = GoodClient::start(&endpoints[1]);
        let client = channel(&endpoints[0]);
        put(&client, "fits", &vec![7; (3 << 19) - 4_096]).await.unwrap();
        let refused = put(&client, "too large", &vec![7; 3 << 19]).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "etcdserver: request is too large"));
        let far_beyond = put(&client, "far too large", &vec![7; 32 << 20]).await.unwrap_err();
        assert!(!far_beyond.message().is_empty());
        put(&client, "still here", b"1").await.unwrap();
        cluster.check_running();
        good.saw_no_failure().await;
    });
}
