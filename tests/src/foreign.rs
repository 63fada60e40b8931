//! Programs of others: tiny ones, in instructions, so that tests need no second eBPF crate.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya::maps::{Array, Map, MapData};
use nix::sys::resource::{Resource, setrlimit};
use veth_user::net::tc::{Direction, Position};

use crate::lab::with_netlink;

const BPF_MAP_CREATE: i64 = 0;
const BPF_PROG_LOAD: i64 = 5;
const BPF_OBJ_PIN: i64 = 6;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Offset of `mark` in `__sk_buff`.
const SKB_MARK: i16 = 8;

/// Offset of `prog_name` in `bpf_attr`.
const PROG_NAME: usize = 48;

/// Helpers.
const MAP_LOOKUP_ELEM: i32 = 1;
const SKB_VLAN_PUSH: i32 = 18;

/// What a program says of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it on.
    Next,
    /// End it.
    Drop,
}

/// Where in the chain of a link's programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all that is there.
    First,
    /// Behind all that is there.
    Last,
}

/// A program of somebody else, attached until it is dropped or its link goes. It counts frames.
#[derive(Debug)]
pub struct Foreign {
    counter: OwnedFd,
    _link: Option<OwnedFd>,
}

impl Foreign {
    /// A TCX program on a link's ingress. The index is of the calling thread's namespace.
    #[must_use]
    pub fn tcx(ifindex: u32, place: Place, verdict: Verdict) -> Self {
        let (counter, program) = classifier(verdict, |_| {});
        let flags = if place == Place::First { BPF_F_BEFORE } else { 0 };
        Self { counter, _link: Some(link(&program, ifindex, BPF_TCX_INGRESS, flags)) }
    }

    /// A TCX program before all others on a link's ingress that is called as one of ours is.
    #[must_use]
    pub fn namesake(ifindex: u32, name: &str) -> Self {
        let (counter, program) = load(BPF_PROG_TYPE_SCHED_CLS, name, TCX_NEXT, |_| {});
        Self { counter, _link: Some(link(&program, ifindex, BPF_TCX_INGRESS, BPF_F_BEFORE)) }
    }

    /// A TC program that is only pinned, for somebody else to attach.
    #[must_use]
    pub fn pinned(path: &Path, verdict: Verdict) -> Self {
        let (counter, program) = classifier(verdict, |_| {});
        let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let mut attr = (path.as_ptr() as u64).to_ne_bytes().to_vec();
        attr.extend(words(&[u32::try_from(program.as_raw_fd()).unwrap(), 0]));
        call(BPF_OBJ_PIN, &attr).unwrap();
        Self { counter, _link: Some(program) }
    }

    /// A clsact filter before all others on a link's ingress, which sets the mark of frames.
    #[must_use]
    pub fn mark_ingress(ifindex: u32, mark: u32) -> Self {
        let (counter, program) = classifier(Verdict::Next, |code| {
            code.push(op(0xb7, 1, 0, 0, mark.try_into().unwrap())); // r1 = mark
            code.push(op(0x63, 6, 1, SKB_MARK, 0)); // skb->mark = r1
        });
        filter(ifindex, Direction::Ingress, 1, &program);
        Self { counter, _link: None }
    }

    /// A clsact filter on a link's ingress, or on its egress.
    #[must_use]
    pub fn clsact(ifindex: u32, direction: Direction, priority: u16, verdict: Verdict) -> Self {
        let (counter, program) = classifier(verdict, |_| {});
        filter(ifindex, direction, priority, &program);
        Self { counter, _link: None }
    }

    /// A TCX program before all others on a link's ingress, which does nothing for a long time: some tens of
    /// microseconds a frame.
    #[must_use]
    pub fn slow_tcx(ifindex: u32) -> Self {
        const TURNS: i32 = 100_000;
        let (counter, program) = classifier(Verdict::Next, |code| {
            code.push(op(0xb7, 1, 0, 0, TURNS)); // r1 = turns
            code.push(op(0x17, 1, 0, 0, 1)); // r1 -= 1
            code.push(op(0x55, 1, 0, -2, 0)); // if r1 != 0, again
        });
        Self { counter, _link: Some(link(&program, ifindex, BPF_TCX_INGRESS, BPF_F_BEFORE)) }
    }

    /// A clsact filter on a link's egress that tags every frame, and leaves the tag beside the frame.
    #[must_use]
    pub fn tag_egress(ifindex: u32, vlan: u16) -> Self {
        let (counter, program) = classifier(Verdict::Next, |code| {
            code.push(op(0xbf, 1, 6, 0, 0)); // r1 = skb
            code.push(op(0xb7, 2, 0, 0, u16::to_be(0x8100).into())); // r2 = 802.1Q
            code.push(op(0xb7, 3, 0, 0, vlan.into())); // r3 = the tag
            code.push(op(0x85, 0, 0, 0, SKB_VLAN_PUSH));
        });
        filter(ifindex, Direction::Egress, 1, &program);
        Self { counter, _link: None }
    }

    /// A native XDP program.
    #[must_use]
    pub fn xdp(ifindex: u32, verdict: Verdict) -> Self {
        // XDP_DROP, XDP_PASS.
        let action = if verdict == Verdict::Drop { 1 } else { 2 };
        let (counter, program) = load(BPF_PROG_TYPE_XDP, "", action, |_| {});
        Self { counter, _link: Some(link(&program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)) }
    }

    /// Frames that it has seen.
    #[must_use]
    pub fn seen(&self) -> u64 {
        let map = MapData::from_fd(self.counter.try_clone().unwrap()).unwrap();
        let map: Array<_, u64> = Array::try_from(Map::Array(map)).unwrap();
        map.get(&0, 0).unwrap()
    }
}

/// `TC_ACT_UNSPEC` of a filter.
const TCX_NEXT: i32 = -1;

/// A TC program: `TC_ACT_SHOT` or `TCX_NEXT`.
fn classifier(verdict: Verdict, extra: impl FnOnce(&mut Vec<u64>)) -> (OwnedFd, OwnedFd) {
    load(BPF_PROG_TYPE_SCHED_CLS, "", if verdict == Verdict::Drop { 2 } else { TCX_NEXT }, extra)
}

/// Loads `counter[0] += 1; EXTRA; return ACTION`, with the context in r6. Returns the counter and the program.
fn load(kind: u32, name: &str, action: i32, extra: impl FnOnce(&mut Vec<u64>)) -> (OwnedFd, OwnedFd) {
    // Kernels before 5.11 count maps against a limit. Where it may not be raised, it is not needed.
    let limit = nix::sys::resource::RLIM_INFINITY;
    let _unused: nix::Result<()> = setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit);
    let counter = bpf(BPF_MAP_CREATE, &words(&[BPF_MAP_TYPE_ARRAY, 4, 8, 1])).unwrap();
    let mut code = vec![
        op(0xbf, 6, 1, 0, 0),                   // r6 = r1
        op(0x62, 10, 0, -4, 0),                 // *(u32 *)(r10 - 4) = 0
        op(0x18, 1, 1, 0, counter.as_raw_fd()), // r1 = map
        op(0, 0, 0, 0, 0),
        op(0xbf, 2, 10, 0, 0), // r2 = r10
        op(0x07, 2, 0, 0, -4), // r2 -= 4
        op(0x85, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(0x15, 0, 0, 2, 0), // if r0 == 0 skip the addition
        op(0xb7, 1, 0, 0, 1), // r1 = 1
        op(0xdb, 0, 1, 0, 0), // lock *(u64 *)r0 += r1
    ];
    extra(&mut code);
    code.push(op(0xb7, 0, 0, 0, action)); // r0 = action
    code.push(op(0x95, 0, 0, 0, 0)); // return
    let licence = c"GPL";
    let mut attr = words(&[kind, u32::try_from(code.len()).unwrap()]);
    attr.extend((code.as_ptr() as u64).to_ne_bytes());
    attr.extend((licence.as_ptr() as u64).to_ne_bytes());
    // No log, no kernel version, no flags.
    attr.resize(PROG_NAME, 0);
    attr.extend(name.as_bytes());
    let program = bpf(BPF_PROG_LOAD, &attr).unwrap();
    (counter, program)
}

/// `struct bpf_insn`: code, destination and source register, offset, immediate.
fn op(code: u8, dst: u64, src: u64, offset: i16, immediate: i32) -> u64 {
    let offset = u64::from(u16::from_ne_bytes(offset.to_ne_bytes()));
    let immediate = u64::from(u32::from_ne_bytes(immediate.to_ne_bytes()));
    u64::from(code) | (dst | src << 4) << 8 | offset << 16 | immediate << 32
}

fn link(program: &OwnedFd, ifindex: u32, attach_type: u32, flags: u32) -> OwnedFd {
    let fd = u32::try_from(program.as_raw_fd()).unwrap();
    bpf(BPF_LINK_CREATE, &words(&[fd, ifindex, attach_type, flags, 0, 0, 0, 0])).unwrap()
}

fn filter(ifindex: u32, direction: Direction, priority: u16, program: &OwnedFd) {
    with_netlink(async |netlink| {
        netlink.add_clsact(ifindex).await.unwrap();
        let position = Position { priority, handle: 1 };
        netlink.put_filter(ifindex, direction, position, program.as_fd(), "theirs").await.unwrap();
    });
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A call that gives a descriptor.
fn bpf(command: i64, attr: &[u8]) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: just opened, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: i64, attr: &[u8]) -> io::Result<i32> {
    let mut whole = [0_u64; 18];
    // SAFETY: plain bytes, and attr is shorter.
    unsafe { std::ptr::copy_nonoverlapping(attr.as_ptr(), whole.as_mut_ptr().cast(), attr.len()) };
    // SAFETY: the kernel reads as much as we say, which is there.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, whole.as_ptr(), size_of_val(&whole)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap()) }
}
