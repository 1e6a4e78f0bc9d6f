//! The handshake's one message, said by both ends. Pure: bytes in, words out.
//!
//! ```text
//!  0          8         10     11     12       16        20
//!  | magic    | version | code | zero | length | CRC32C  | body …
//!    8 bytes    u16 LE    u8     u8     u32 LE   u32 LE    `length` bytes
//!
//!  body = cluster u64 · node u64 · expect u64 · name (u16 + UTF-8) · peer address (u16 + UTF-8) · payload (u32 + bytes)
//! ```
//!
//! 1. The header keeps this layout in every version, so that two versions can always tell each other apart.
//! 2. The dialer speaks first, with what it wants (`Open`); the acceptor answers once, with `Accepted` or a refusal,
//!    and says who it is either way, so that the dialer's log can name what it met.
//! 3. The checksum covers the header up to itself and the body.

use std::fmt;

use bytes::{BufMut, Bytes};

use crate::{ClusterId, Lane, NodeId};

/// Bytes before the body.
pub const HELLO_HEADER_BYTES: usize = 20;
/// The version of the handshake and of what follows it.
pub const PROTOCOL_VERSION: u16 = 1;
/// The most an embedder's payload may hold.
pub const HELLO_PAYLOAD_BYTES_MAX: usize = 64 << 10;
/// The most a name or an address may hold.
pub const HELLO_TEXT_BYTES_MAX: usize = 512;
/// The largest body: payload, two texts, and the fixed fields.
pub const HELLO_BODY_BYTES_MAX: usize = HELLO_PAYLOAD_BYTES_MAX + 2 * HELLO_TEXT_BYTES_MAX + 32;

/// Ends in CR LF so that a link that rewrites line ends is found out at once.
const MAGIC: [u8; 8] = *b"triune\r\n";

/// Who speaks, and to whom it believes to be speaking.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The speaker's cluster; 0 before formation.
    pub cluster: ClusterId,
    /// The speaker's disk id; 0 when it has none, as a command line tool.
    pub node: NodeId,
    /// The disk id the speaker expects to meet; 0 for any.
    pub expect: NodeId,
    /// The speaker's name, for people. At most [`HELLO_TEXT_BYTES_MAX`] bytes.
    pub name: String,
    /// Where the speaker's peers can reach it; empty when they cannot. At most [`HELLO_TEXT_BYTES_MAX`] bytes.
    pub peer_addr: String,
    /// Whatever the embedder wants to say. At most [`HELLO_PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Bytes,
}

/// What a dialer wants of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// To send frames on this lane.
    Link(Lane),
    /// One answer to one payload.
    Exchange,
}

/// Why an acceptor will not talk. Sent back to the dialer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Refusal {
    /// The two ends belong to different clusters. Check the address.
    WrongCluster,
    /// The acceptor is not the disk the dialer expected: it was replaced, or the address is another member's.
    WrongNode,
    /// The two ends speak different protocol versions. Upgrade the older.
    BadVersion,
    /// Both ends have the same disk id: a copied data directory, or a member that dialled itself.
    SameNode,
    /// Nobody took the exchange in time. Try again.
    Busy,
    /// One end has no cluster yet and the other insists on one.
    NoCluster,
    /// The hello does not make sense, as a link from nobody.
    BadHello,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::WrongCluster,
        Self::WrongNode,
        Self::BadVersion,
        Self::SameNode,
        Self::Busy,
        Self::NoCluster,
        Self::BadHello,
    ];

    /// A short fixed word, for metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::WrongCluster => "wrong_cluster",
            Self::WrongNode => "wrong_node",
            Self::BadVersion => "bad_version",
            Self::SameNode => "same_node",
            Self::Busy => "busy",
            Self::NoCluster => "no_cluster",
            Self::BadHello => "bad_hello",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::WrongCluster => 0x81,
            Self::WrongNode => 0x82,
            Self::BadVersion => 0x83,
            Self::SameNode => 0x84,
            Self::Busy => 0x85,
            Self::NoCluster => 0x86,
            Self::BadHello => 0x87,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongCluster => "wrong cluster",
            Self::WrongNode => "wrong node",
            Self::BadVersion => "bad protocol version",
            Self::SameNode => "same node id on both ends",
            Self::Busy => "busy",
            Self::NoCluster => "not in a cluster yet",
            Self::BadHello => "bad hello",
        })
    }
}

/// What a header says the message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// The dialer's wish.
    Open(Open),
    /// The acceptor agrees.
    Accepted,
    /// The acceptor does not.
    Refused(Refusal),
}

impl Said {
    const fn code(self) -> u8 {
        match self {
            Self::Open(Open::Link(Lane::Main)) => 0,
            Self::Open(Open::Link(Lane::Bulk)) => 1,
            Self::Open(Open::Exchange) => 2,
            Self::Accepted => 0x80,
            Self::Refused(refusal) => refusal.code(),
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Open(Open::Link(Lane::Main))),
            1 => Some(Self::Open(Open::Link(Lane::Bulk))),
            2 => Some(Self::Open(Open::Exchange)),
            0x80 => Some(Self::Accepted),
            _ => Refusal::ALL.into_iter().find(|r| r.code() == code).map(Self::Refused),
        }
    }
}

/// Why bytes are no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The other end does not speak this protocol at all.
    #[error("not a triune peer")]
    Magic,
    /// It speaks another version of it.
    #[error("protocol version {theirs}, this build speaks {PROTOCOL_VERSION}")]
    Version {
        /// What it speaks.
        theirs: u16,
    },
    /// The body would exceed [`HELLO_BODY_BYTES_MAX`].
    #[error("hello of {0} bytes, limit {HELLO_BODY_BYTES_MAX}")]
    TooLarge(u32),
    /// The bytes are not what was sent.
    #[error("hello checksum mismatch")]
    Checksum,
    /// A field is missing, too long, left over or not UTF-8, or the code is unknown.
    #[error("malformed hello")]
    Malformed,
}

/// A header that made sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloHeader {
    version: u16,
    code: u8,
    body_bytes: u32,
    sum: u32,
    sum_head: u32,
}

impl Hello {
    /// Whether every part is within its limit.
    pub fn fits(&self) -> bool {
        self.name.len() <= HELLO_TEXT_BYTES_MAX
            && self.peer_addr.len() <= HELLO_TEXT_BYTES_MAX
            && self.payload.len() <= HELLO_PAYLOAD_BYTES_MAX
    }

    /// Whether an acceptor, this disk in this cluster, talks to who said this. Cluster 0 on either side means "not
    /// formed yet" and meets anybody, unless `require_cluster`, which binds links alone.
    ///
    /// # Errors
    /// The [`Refusal`] to send back.
    pub fn judge(&self, open: Open, local: NodeId, cluster: ClusterId, require_cluster: bool) -> Result<(), Refusal> {
        let formed = self.cluster != ClusterId(0) && cluster != ClusterId(0);
        if formed && self.cluster != cluster {
            return Err(Refusal::WrongCluster);
        }
        if self.expect != NodeId(0) && self.expect != local {
            return Err(Refusal::WrongNode);
        }
        match open {
            Open::Exchange => Ok(()),
            Open::Link(_) if self.node == NodeId(0) => Err(Refusal::BadHello),
            Open::Link(_) if self.node == local => Err(Refusal::SameNode),
            Open::Link(_) if require_cluster && !formed => Err(Refusal::NoCluster),
            Open::Link(_) => Ok(()),
        }
    }

    /// The whole message. Parts beyond their limits are cut; [`Hello::fits`] says beforehand.
    pub fn encode(&self, said: Said) -> Vec<u8> {
        self.encode_as(PROTOCOL_VERSION, said)
    }

    fn encode_as(&self, version: u16, said: Said) -> Vec<u8> {
        let mut body = Vec::with_capacity(64 + self.payload.len());
        body.put_u64_le(self.cluster.0);
        body.put_u64_le(self.node.0);
        body.put_u64_le(self.expect.0);
        put_text(&mut body, &self.name);
        put_text(&mut body, &self.peer_addr);
        let payload = self.payload.get(..HELLO_PAYLOAD_BYTES_MAX).unwrap_or(&self.payload);
        body.put_u32_le(u32::try_from(payload.len()).unwrap_or(0));
        body.put_slice(payload);

        let mut wire = Vec::with_capacity(HELLO_HEADER_BYTES + body.len());
        wire.put_slice(&MAGIC);
        wire.put_u16_le(version);
        wire.put_u8(said.code());
        wire.put_u8(0);
        wire.put_u32_le(u32::try_from(body.len()).unwrap_or(0));
        wire.put_u32_le(crc32c::crc32c_append(crc32c::crc32c(&wire), &body));
        wire.put_slice(&body);
        wire
    }
}

impl HelloHeader {
    /// Reads a header; only its magic and length are judged here.
    ///
    /// # Errors
    /// [`HelloError::Magic`], [`HelloError::TooLarge`].
    pub fn decode(wire: &[u8; HELLO_HEADER_BYTES]) -> Result<Self, HelloError> {
        let (head, [w, x, y, z]) = wire.split_last_chunk::<4>().ok_or(HelloError::Malformed)?;
        let [magic @ .., v0, v1, code, _zero, l0, l1, l2, l3] = head else { return Err(HelloError::Malformed) };
        if magic != MAGIC {
            return Err(HelloError::Magic);
        }
        let body_bytes = u32::from_le_bytes([*l0, *l1, *l2, *l3]);
        if body_bytes as usize > HELLO_BODY_BYTES_MAX {
            return Err(HelloError::TooLarge(body_bytes));
        }
        Ok(Self {
            version: u16::from_le_bytes([*v0, *v1]),
            code: *code,
            body_bytes,
            sum: u32::from_le_bytes([*w, *x, *y, *z]),
            sum_head: crc32c::crc32c(head),
        })
    }

    /// How many bytes of body follow; at most [`HELLO_BODY_BYTES_MAX`].
    pub fn body_bytes(&self) -> usize {
        self.body_bytes as usize
    }

    /// Reads the body this header announced.
    ///
    /// # Errors
    /// [`HelloError::Version`], [`HelloError::Checksum`], [`HelloError::Malformed`].
    pub fn decode_body(&self, body: &[u8]) -> Result<(Said, Hello), HelloError> {
        if self.version != PROTOCOL_VERSION {
            return Err(HelloError::Version { theirs: self.version });
        }
        if crc32c::crc32c_append(self.sum_head, body) != self.sum {
            return Err(HelloError::Checksum);
        }
        let said = Said::from_code(self.code).ok_or(HelloError::Malformed)?;
        let hello = parse_body(body).ok_or(HelloError::Malformed)?;
        Ok((said, hello))
    }
}

fn parse_body(mut body: &[u8]) -> Option<Hello> {
    let cluster = ClusterId(take_u64(&mut body)?);
    let node = NodeId(take_u64(&mut body)?);
    let expect = NodeId(take_u64(&mut body)?);
    let name = take_text(&mut body)?;
    let peer_addr = take_text(&mut body)?;
    let length = u32::from_le_bytes(*take(&mut body)?);
    let payload = Bytes::copy_from_slice(body);
    let whole = payload.len() <= HELLO_PAYLOAD_BYTES_MAX && payload.len() == length as usize;
    whole.then_some(Hello { cluster, node, expect, name, peer_addr, payload })
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    let kept = text.get(..text.floor_char_boundary(HELLO_TEXT_BYTES_MAX)).unwrap_or("");
    body.put_u16_le(u16::try_from(kept.len()).unwrap_or(0));
    body.put_slice(kept.as_bytes());
}

fn take<'a, const N: usize>(body: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = body.split_first_chunk::<N>()?;
    *body = rest;
    Some(head)
}

fn take_u64(body: &mut &[u8]) -> Option<u64> {
    take(body).map(|b| u64::from_le_bytes(*b))
}

fn take_text(body: &mut &[u8]) -> Option<String> {
    let length = usize::from(u16::from_le_bytes(*take(body)?));
    let (text, rest) = body.split_at_checked(length).filter(|(t, _)| t.len() <= HELLO_TEXT_BYTES_MAX)?;
    *body = rest;
    std::str::from_utf8(text).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Hello {
        Hello {
            cluster: ClusterId(7),
            node: NodeId(1),
            expect: NodeId(2),
            name: "m0".into(),
            peer_addr: "127.0.0.1:2380".into(),
            payload: Bytes::from_static(b"listed"),
        }
    }

    fn decode(wire: &[u8]) -> Result<(Said, Hello), HelloError> {
        let (head, body) = wire.split_first_chunk().ok_or(HelloError::Malformed)?;
        HelloHeader::decode(head)?.decode_body(body)
    }

    #[test]
    fn every_code_survives_the_wire() {
        let opens = [Open::Link(Lane::Main), Open::Link(Lane::Bulk), Open::Exchange].map(Said::Open);
        let all = opens.into_iter().chain([Said::Accepted]).chain(Refusal::ALL.map(Said::Refused));
        for said in all {
            assert_eq!(decode(&sample().encode(said)), Ok((said, sample())));
        }
    }

    #[test]
    fn who_may_talk_to_whom() {
        let check = |change: fn(&mut Hello), open: Open, cluster: u64, require: bool, expected: Result<(), Refusal>| {
            let mut theirs = sample();
            change(&mut theirs);
            assert_eq!(theirs.judge(open, NodeId(2), ClusterId(cluster), require), expected, "{theirs:?}");
        };
        let link = Open::Link(Lane::Main);
        check(|_| {}, link, 7, true, Ok(()));
        check(|_| {}, link, 8, false, Err(Refusal::WrongCluster));
        check(|_| {}, Open::Exchange, 8, false, Err(Refusal::WrongCluster));
        check(|_| {}, link, 0, false, Ok(()));
        check(|_| {}, link, 0, true, Err(Refusal::NoCluster));
        check(|h| h.cluster = ClusterId(0), link, 7, true, Err(Refusal::NoCluster));
        check(|h| h.cluster = ClusterId(0), Open::Exchange, 7, true, Ok(()));
        check(|h| h.expect = NodeId(3), link, 7, true, Err(Refusal::WrongNode));
        check(|h| h.expect = NodeId(0), link, 7, true, Ok(()));
        check(|h| h.node = NodeId(2), link, 7, true, Err(Refusal::SameNode));
        check(|h| h.node = NodeId(0), link, 7, true, Err(Refusal::BadHello));
        check(|h| h.node = NodeId(0), Open::Exchange, 7, true, Ok(()));
    }

    #[test]
    fn another_version_is_told_apart_whatever_its_body() {
        let wire = sample().encode_as(9, Said::Accepted);
        assert_eq!(decode(&wire), Err(HelloError::Version { theirs: 9 }));
        assert_eq!(decode(&wire[..HELLO_HEADER_BYTES]), Err(HelloError::Version { theirs: 9 }));
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_noticed() {
        let good = sample().encode(Said::Accepted);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit} flipped");
        }
        for cut in 0..good.len() {
            assert!(decode(&good[..cut]).is_err(), "cut after {cut} bytes");
        }
    }

    #[test]
    fn a_body_over_the_limit_is_refused_by_its_header() {
        let mut wire = sample().encode(Said::Accepted);
        wire[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(decode(&wire), Err(HelloError::TooLarge(u32::MAX)));
    }

    #[test]
    fn text_beyond_the_limit_is_cut_at_a_character() {
        let hello = Hello { name: "ß".repeat(HELLO_TEXT_BYTES_MAX), ..sample() };
        assert!(!hello.fits());
        let (_, got) = decode(&hello.encode(Said::Accepted)).unwrap();
        assert_eq!(got.name, "ß".repeat(HELLO_TEXT_BYTES_MAX / 2));
    }
}
