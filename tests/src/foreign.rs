//! Programs of others: tiny ones, in instructions, so that tests need no second eBPF crate.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use aya::maps::{Array, Map, MapData};

const BPF_MAP_CREATE: i64 = 0;
const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;

/// Offset of `mark` in `__sk_buff`.
const SKB_MARK: i16 = 8;

/// Where in the chain of a link's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all that is there.
    First,
    /// Behind all that is there.
    Last,
}

/// A TCX program of somebody else, attached to a link's ingress until it is dropped. It counts frames, sets
/// their mark if it is not 0, and lets them on.
#[derive(Debug)]
pub struct ForeignTcx {
    counter: OwnedFd,
    _link: OwnedFd,
}

impl ForeignTcx {
    /// Attaches it. The index is of the calling thread's namespace.
    #[must_use]
    pub fn attach(ifindex: u32, place: Place, mark: u32) -> Self {
        let counter = bpf(BPF_MAP_CREATE, &words(&[BPF_MAP_TYPE_ARRAY, 4, 8, 1])).unwrap();
        let code = program(counter.as_raw_fd(), mark);
        let licence = c"GPL";
        let mut attr = words(&[BPF_PROG_TYPE_SCHED_CLS, u32::try_from(code.len()).unwrap()]);
        attr.extend((code.as_ptr() as u64).to_ne_bytes());
        attr.extend((licence.as_ptr() as u64).to_ne_bytes());
        let program = bpf(BPF_PROG_LOAD, &attr).unwrap();
        let flags = if place == Place::First { BPF_F_BEFORE } else { 0 };
        let fd = u32::try_from(program.as_raw_fd()).unwrap();
        let link = bpf(BPF_LINK_CREATE, &words(&[fd, ifindex, BPF_TCX_INGRESS, flags, 0, 0, 0, 0])).unwrap();
        Self { counter, _link: link }
    }

    /// Frames that it has seen.
    #[must_use]
    pub fn seen(&self) -> u64 {
        let map = MapData::from_fd(self.counter.try_clone().unwrap()).unwrap();
        let map: Array<_, u64> = Array::try_from(Map::Array(map)).unwrap();
        map.get(&0, 0).unwrap()
    }
}

/// `counter[0] += 1; if (mark) skb->mark = mark; return TCX_NEXT`.
fn program(counter: i32, mark: u32) -> Vec<u64> {
    // code, destination and source register, offset, immediate: `struct bpf_insn`.
    let op = |code: u8, dst: u64, src: u64, offset: i16, immediate: i32| {
        let offset = u64::from(u16::from_ne_bytes(offset.to_ne_bytes()));
        let immediate = u64::from(u32::from_ne_bytes(immediate.to_ne_bytes()));
        u64::from(code) | (dst | src << 4) << 8 | offset << 16 | immediate << 32
    };
    let mut code = vec![
        op(0xbf, 6, 1, 0, 0),       // r6 = r1
        op(0x62, 10, 0, -4, 0),     // *(u32 *)(r10 - 4) = 0
        op(0x18, 1, 1, 0, counter), // r1 = map
        op(0, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0), // r2 = r10
        op(0x07, 2, 0, 0, -4), // r2 -= 4
        op(0x85, 0, 0, 0, 1),  // bpf_map_lookup_elem
        op(0x15, 0, 0, 2, 0),  // if r0 == 0 skip the addition
        op(0xb7, 1, 0, 0, 1),  // r1 = 1
        op(0xdb, 0, 1, 0, 0),  // lock *(u64 *)r0 += r1
    ];
    if mark != 0 {
        code.push(op(0xb7, 1, 0, 0, mark.try_into().unwrap())); // r1 = mark
        code.push(op(0x63, 6, 1, SKB_MARK, 0)); // skb->mark = r1
    }
    code.push(op(0xb7, 0, 0, 0, -1)); // r0 = TCX_NEXT
    code.push(op(0x95, 0, 0, 0, 0)); // return
    code
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn bpf(command: i64, attr: &[u8]) -> io::Result<OwnedFd> {
    let mut whole = [0_u64; 18];
    // SAFETY: plain bytes, and attr is shorter.
    unsafe { std::ptr::copy_nonoverlapping(attr.as_ptr(), whole.as_mut_ptr().cast(), attr.len()) };
    // SAFETY: the kernel reads as much as we say, which is there.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, whole.as_ptr(), size_of_val(&whole)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) })
}
