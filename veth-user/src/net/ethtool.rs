//! Device features and statistics, as `ethtool -k`, `-K` and `-S` read and write them. Through the ioctl, which has
//! every feature by name on every kernel; a socket that was opened in a namespace asks of that namespace.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Error, Netns, Result};

/// `SIOCETHTOOL` and its commands, of `linux/sockios.h` and `linux/ethtool.h`.
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GSTRINGS: u32 = 0x1b;
const GSTATS: u32 = 0x1d;
const GSSET_INFO: u32 = 0x37;
const GFEATURES: u32 = 0x3a;
const SFEATURES: u32 = 0x3b;

/// Sets of names.
const STATS: u32 = 1;
const FEATURES: u32 = 4;

/// The length of a name.
const NAME: usize = 32;

/// A feature of a device, by the kernel's name, and whether it is to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The kernel's name: `rx-gro`, `tx-checksum-ip-generic`, ….
    pub feature: &'static str,
    /// On or off.
    pub on: bool,
}

/// A socket that asks about the devices of one namespace.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
}

impl Ethtool {
    /// Opens one in the calling thread's namespace.
    ///
    /// # Errors
    ///
    /// When the kernel gives no socket.
    pub fn open() -> Result<Self> {
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map(|socket| Self { socket })
            .map_err(|errno| Error::new("open a socket for ethtool", errno))
    }

    /// Opens one in another namespace.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered or the kernel gives no socket.
    pub fn open_in(namespace: &Netns) -> Result<Self> {
        namespace.run(Self::open)?
    }

    /// Every feature of a device, and whether it is on.
    ///
    /// # Errors
    ///
    /// When there is no such device.
    pub fn features(&self, link: &str) -> Result<BTreeMap<String, bool>> {
        let action = || format!("read the features of {link}");
        let names = self.names(link, FEATURES).map_err(|source| Error::new(action(), source))?;
        let blocks = names.len().div_ceil(32);
        // Per block: available, requested, active, never changed.
        let mut request = Request::new(GFEATURES);
        request.push(u32::try_from(blocks).unwrap_or(0));
        request.reserve(blocks * 16);
        self.ask(link, &mut request).map_err(|source| Error::new(action(), source))?;
        let is_on = |number: usize| request.word(8 + number / 32 * 16 + 8) >> (number % 32) & 1 == 1;
        Ok(names.into_iter().enumerate().map(|(number, name)| (name, is_on(number))).collect())
    }

    /// Turns features on or off. Returns those that were otherwise before, so that they can be restored. A feature
    /// that the kernel does not have counts as off.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or a feature that is wanted on is not there.
    pub fn set_features(&self, link: &str, settings: &[Setting]) -> Result<Vec<Setting>> {
        let action = || {
            let words: Vec<String> = settings
                .iter()
                .map(|Setting { feature, on }| format!("{feature} {}", if *on { "on" } else { "off" }))
                .collect();
            format!("set {} of {link}", words.join(", "))
        };
        let failed = |source| Error::new(action(), source);
        let before = self.features(link)?;
        let names = self.names(link, FEATURES).map_err(failed)?;
        let blocks = names.len().div_ceil(32);
        let mut request = Request::new(SFEATURES);
        request.push(u32::try_from(blocks).unwrap_or(0));
        request.reserve(blocks * 8);
        let mut changed = Vec::new();
        for setting in settings {
            if before.get(setting.feature).copied().unwrap_or_default() == setting.on {
                continue;
            }
            let number = names.iter().position(|name| name == setting.feature);
            let number = number.ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EOPNOTSUPP)))?;
            let block = 8 + number / 32 * 8;
            request.set_bit(block, number % 32, true);
            request.set_bit(block + 4, number % 32, setting.on);
            changed.push(Setting { on: !setting.on, ..*setting });
        }
        if changed.is_empty() {
            return Ok(changed);
        }
        self.ask(link, &mut request).map_err(failed)?;
        // The kernel takes a wish and does what it can: look whether it did.
        let after = self.features(link)?;
        let is = |setting: &Setting| after.get(setting.feature).copied().unwrap_or_default() == setting.on;
        if settings.iter().all(is) {
            return Ok(changed);
        }
        Err(failed(io::Error::other("the kernel keeps it as it was")))
    }

    /// The statistics of a device's driver, `ethtool -S`.
    ///
    /// # Errors
    ///
    /// When there is no such device, or its driver has none.
    pub fn statistics(&self, link: &str) -> Result<BTreeMap<String, u64>> {
        let failed = |source| Error::new(format!("read the driver's statistics of {link}"), source);
        let names = self.names(link, STATS).map_err(failed)?;
        let mut request = Request::new(GSTATS);
        request.push(u32::try_from(names.len()).unwrap_or(0));
        request.reserve(names.len() * 8);
        self.ask(link, &mut request).map_err(failed)?;
        let value = |number: usize| {
            let at = 8 + number * 8;
            u64::from(request.word(at)) | u64::from(request.word(at + 4)) << 32
        };
        Ok(names.into_iter().enumerate().map(|(number, name)| (name, value(number))).collect())
    }

    /// The names of a set, in the kernel's order.
    fn names(&self, link: &str, set: u32) -> io::Result<Vec<String>> {
        let mut request = Request::new(GSSET_INFO);
        request.push(0);
        request.push(1 << set);
        request.push(0);
        request.reserve(4);
        self.ask(link, &mut request)?;
        let count = if request.word(8) == 0 { 0 } else { request.word(16) };
        let mut request = Request::new(GSTRINGS);
        request.push(set);
        request.push(count);
        let bytes = usize::try_from(count).unwrap_or(0) * NAME;
        request.reserve(bytes);
        self.ask(link, &mut request)?;
        let name = |bytes: &[u8]| {
            let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        Ok(request.0[12..12 + bytes].chunks_exact(NAME).map(name).collect())
    }

    fn ask(&self, link: &str, request: &mut Request) -> io::Result<()> {
        let name = CString::new(link).map_err(io::Error::other)?;
        let name = name.as_bytes_with_nul();
        // SAFETY: all zero is a valid ifreq.
        let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() > ifreq.ifr_name.len() {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        for (to, from) in ifreq.ifr_name.iter_mut().zip(name) {
            *to = from.cast_signed();
        }
        let length = request.0.len();
        request.reserve(SLACK);
        ifreq.ifr_ifru.ifru_data = request.0.as_mut_ptr().cast();
        // SAFETY: the kernel writes as many names, values or blocks as the device has, for which there is room.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
        request.0.truncate(length);
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Room behind a request. The kernel writes as much as it has now, whatever was asked for: a device of another
/// kind may have come under the same name since its names were counted.
const SLACK: usize = 64 * 1024;

/// A command and what belongs to it, in the kernel's layout.
struct Request(Vec<u8>);

impl Request {
    fn new(command: u32) -> Self {
        Self(command.to_ne_bytes().to_vec())
    }

    fn push(&mut self, word: u32) {
        self.0.extend(word.to_ne_bytes());
    }

    fn reserve(&mut self, bytes: usize) {
        self.0.resize(self.0.len() + bytes, 0);
    }

    fn word(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    fn set_bit(&mut self, at: usize, bit: usize, on: bool) {
        let word = self.word(at) & !(1 << bit) | u32::from(on) << bit;
        self.0[at..at + 4].copy_from_slice(&word.to_ne_bytes());
    }
}
