//! Mends one habit of Go's etcd clients: given an endpoint with its scheme, they send `http://host:port` as HTTP/2's
//! `:authority` (etcdctl 3.4 does for every URL of a member list). gRPC in Go takes it; the HTTP/2 of this process
//! refuses the request as malformed, as RFC 9113 8.3.1 allows. So the value is replaced on its way in.
//!
//! Pure: bytes in, bytes out. A connection whose first request is well formed is never looked at again.
//!
//! 1. Nothing but the value of a literal `:authority` (HPACK static index 1) ever changes.
//! 2. The replacement is shorter, so this end's header table never evicts an entry sooner than the client believes
//!    (RFC 7541 4.4), and an index into it names what the client means.
//! 3. At most one HEADERS frame is held back; what cannot be understood passes unchanged, for HTTP/2 to judge.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// A larger HEADERS frame passes unseen. HTTP/2's default limit of a frame.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// What is put in the place of a URL.
const REPLACEMENT: &[u8] = b"localhost";

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Mender {
    state: State,
    held: BytesMut,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing came yet.
    #[default]
    Preface,
    /// Between two frames.
    Frame {
        /// The first HEADERS was mended: the next ones are looked at too.
        mending: bool,
    },
    /// In the payload of a frame that passes.
    Skip { left: usize, mending: bool },
    /// All passes from here on.
    Off,
}

impl Mender {
    /// Whether all that comes passes unchanged, so that [`Mender::push`] need not be called.
    pub(super) fn is_off(&self) -> bool {
        self.state == State::Off && self.held.is_empty()
    }

    /// Takes bytes from the client; appends to `out` what may be read on.
    pub(super) fn push(&mut self, bytes: &[u8], out: &mut BytesMut) {
        self.held.extend_from_slice(bytes);
        while self.advance(out) {}
    }

    /// One step; whether there may be another.
    fn advance(&mut self, out: &mut BytesMut) -> bool {
        match self.state {
            State::Off => {
                out.unsplit(self.held.split());
                false
            }
            State::Preface => {
                if !self.held.starts_with(PREFACE) {
                    if !PREFACE.starts_with(&self.held) {
                        self.state = State::Off;
                        return true;
                    }
                    return false;
                }
                out.put(self.held.split_to(PREFACE.len()));
                self.state = State::Frame { mending: false };
                true
            }
            State::Skip { left, mending } => {
                let take = left.min(self.held.len());
                out.put(self.held.split_to(take));
                let left = left - take;
                self.state = if left == 0 { State::Frame { mending } } else { State::Skip { left, mending } };
                left == 0
            }
            State::Frame { mending } => self.frame(mending, out),
        }
    }

    fn frame(&mut self, mending: bool, out: &mut BytesMut) -> bool {
        let Some(header) = self.held.get(..FRAME_HEADER_BYTES) else { return false };
        let (mut header, mut kind) = header.split_at(3);
        let len = usize::try_from(header.get_uint(3)).unwrap_or(usize::MAX);
        let (kind, flags) = (kind.get_u8(), kind.get_u8());
        if kind != HEADERS || flags & END_HEADERS == 0 || len > HEADERS_BYTES_MAX {
            out.put(self.held.split_to(FRAME_HEADER_BYTES));
            // A first request that is not one HEADERS frame is nothing a Go client sends.
            self.state = if kind == HEADERS && !mending { State::Off } else { State::Skip { left: len, mending } };
            return true;
        }
        if self.held.len() < FRAME_HEADER_BYTES + len {
            return false;
        }
        let mut frame = self.held.split_to(FRAME_HEADER_BYTES + len).freeze();
        let header = frame.split_to(FRAME_HEADER_BYTES);
        match mended(&frame, flags) {
            None => {
                out.put(header);
                out.put(frame);
                self.state = if mending { State::Frame { mending } } else { State::Off };
            }
            Some(payload) => {
                out.put_uint(payload.len() as u64, 3);
                out.put(header.get(3..).unwrap_or_default());
                out.put(payload);
                self.state = State::Frame { mending: true };
            }
        }
        true
    }
}

/// The payload of a HEADERS frame with its `:authority` replaced; `None` when it is well formed, or not understood.
fn mended(payload: &Bytes, flags: u8) -> Option<BytesMut> {
    let before = usize::from(flags & PADDED != 0) + if flags & PRIORITY != 0 { 5 } else { 0 };
    let padding = if flags & PADDED != 0 { usize::from(*payload.first()?) } else { 0 };
    let end = payload.len().checked_sub(padding)?;
    let block = payload.get(before..end)?;
    let (start, len) = bad_authority(block)?;
    let mut out = BytesMut::with_capacity(payload.len());
    out.put(payload.get(..before + start)?);
    out.put_u8(u8::try_from(REPLACEMENT.len()).ok()?);
    out.put(REPLACEMENT);
    out.put(payload.get(before + start + len..)?);
    (out.len() <= payload.len()).then_some(out)
}

/// Where the literal value (its length included) of a malformed `:authority` stands in a header block.
fn bad_authority(block: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(first) = block.get(at).copied() {
        let bits = match first {
            0x80.. => {
                at += integer(block.get(at..)?, 7)?.1;
                continue;
            }
            0x40.. => 6,
            0x20.. => {
                at += integer(block.get(at..)?, 5)?.1;
                continue;
            }
            _ => 4,
        };
        let (name, taken) = integer(block.get(at..)?, bits)?;
        at += taken;
        if name == 0 {
            at += string(block.get(at..)?)?.0;
        }
        let (taken, value, huffman) = string(block.get(at..)?)?;
        if name == 1 && is_url(value, huffman) {
            return Some((at, taken));
        }
        at += taken;
    }
    None
}

/// An integer with a prefix of so many bits (RFC 7541 5.1), and how many bytes it takes.
fn integer(bytes: &[u8], bits: u32) -> Option<(usize, usize)> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*bytes.first()?) & mask;
    if value < mask {
        return Some((value, 1));
    }
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        value += (usize::from(*byte) & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// A string (RFC 7541 5.2): how many bytes it takes with its length, its bytes, and whether they are Huffman's.
fn string(bytes: &[u8]) -> Option<(usize, &[u8], bool)> {
    let huffman = bytes.first()? & 0x80 != 0;
    let (len, taken) = integer(bytes, 7)?;
    Some((taken + len, bytes.get(taken..taken.checked_add(len)?)?, huffman))
}

/// Whether the value begins with a scheme, as no authority does.
fn is_url(value: &[u8], huffman: bool) -> bool {
    if !huffman {
        return value.starts_with(b"http://") || value.starts_with(b"https://");
    }
    let mut first = [0; 8];
    let len = value.len().min(8);
    if let (Some(to), Some(from)) = (first.get_mut(..len), value.get(..len)) {
        to.copy_from_slice(from);
    }
    let bits = u64::from_be_bytes(first);
    [(HTTP, HTTP_BITS), (HTTPS, HTTPS_BITS)].iter().any(|(code, len)| bits >> (64 - len) == *code)
}

/// `http://` in the code of RFC 7541 appendix B: h 100111, t 01001, t 01001, p 101011, : 1011100, / 011000, / 011000.
#[expect(clippy::unusual_byte_groupings, reason = "one group a letter of the code")]
const HTTP: u64 = 0b100111_01001_01001_101011_1011100_011000_011000;
const HTTP_BITS: u32 = 41;
/// `https://`: the same with s 01000 before the colon.
#[expect(clippy::unusual_byte_groupings, reason = "one group a letter of the code")]
const HTTPS: u64 = 0b100111_01001_01001_101011_01000_1011100_011000_011000;
const HTTPS_BITS: u32 = 46;

#[cfg(test)]
mod tests {
    use super::*;

    /// What grpc-go's encoder makes of `:authority: http://127.0.0.1:2379`: literal with indexing, name 1, Huffman.
    fn literal_huffman() -> Vec<u8> {
        // 1 00001, 2 00010, 7 011101, 0 00000, . 010111, 3 011001, 9 011111, : 1011100
        let code = "100111 01001 01001 101011 1011100 011000 011000 00001 00010 011101 010111 00000 010111 00000 010111 \
                    00001 1011100 00010 011001 011101 011111";
        let mut bits: Vec<u8> = code.bytes().filter(u8::is_ascii_digit).map(|b| b - b'0').collect();
        while !bits.len().is_multiple_of(8) {
            bits.push(1);
        }
        let bytes: Vec<u8> = bits.chunks(8).map(|c| c.iter().fold(0, |byte, bit| byte << 1 | bit)).collect();
        [&[0x41, 0x80 | bytes.len() as u8][..], &bytes].concat()
    }

    fn literal_raw(value: &str) -> Vec<u8> {
        [&[0x41, value.len() as u8][..], value.as_bytes()].concat()
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn conversation(authority: &[u8]) -> Vec<u8> {
        // :method POST, :scheme http, :path /x as a literal, then :authority, then an indexed field.
        let block = [&[0x83, 0x86, 0x44, 2, b'/', b'x'][..], authority, &[0x82]].concat();
        [PREFACE, &frame(4, 0, &[]), &frame(HEADERS, END_HEADERS, &block), &frame(0, 1, b"data")].concat()
    }

    /// The same result, however the bytes are cut.
    fn mend(bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut results = (1..=bytes.len()).map(|cut| {
            let (mut mender, mut out) = (Mender::default(), BytesMut::new());
            bytes.chunks(cut).for_each(|piece| mender.push(piece, &mut out));
            (out.to_vec(), mender.is_off())
        });
        let first = results.next().unwrap();
        assert!(results.all(|other| other == first));
        first
    }

    #[test]
    fn a_url_is_replaced_and_nothing_else_changes() {
        for authority in [literal_huffman(), literal_raw("http://127.0.0.1:2379"), literal_raw("https://[::1]:2379")] {
            let (mended, off) = mend(&conversation(&authority));
            assert_eq!(mended, conversation(&literal_raw("localhost")));
            assert!(!off, "the next request may say it again");
        }
    }

    #[test]
    fn a_well_formed_connection_passes_and_is_left_alone() {
        for authority in [literal_raw("127.0.0.1:2379"), literal_raw("httpd:80"), vec![0xc0]] {
            let said = conversation(&authority);
            assert_eq!(mend(&said), (said, true));
        }
    }

    #[test]
    fn a_later_request_that_says_it_again_is_mended_again() {
        let block = [&[0x83][..], &literal_huffman()].concat();
        let said = [conversation(&literal_huffman()), frame(HEADERS, END_HEADERS, &block)].concat();
        let (mended, _) = mend(&said);
        assert_eq!(mended.windows(9).filter(|w| *w == b"localhost").count(), 2);
    }

    #[test]
    fn padding_and_priority_stay_where_they_are() {
        let block = [&[3, 0, 0, 0, 0, 9][..], &literal_huffman(), &[0, 0, 0]].concat();
        let said = [PREFACE, &frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &block)].concat();
        let block = [&[3, 0, 0, 0, 0, 9][..], &literal_raw("localhost"), &[0, 0, 0]].concat();
        assert_eq!(mend(&said).0, [PREFACE, &frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &block)].concat());
    }

    #[test]
    fn bytes_that_are_no_http2_pass_unchanged() {
        let mut noise = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        assert_eq!(mend(&noise), (noise.clone(), true));
        noise = [PREFACE, &frame(HEADERS, END_HEADERS, &[0x41, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])].concat();
        assert_eq!(mend(&noise).0, noise);
    }
}
