//! Kernels as the distribution ships them: found in the package lists of several suites, downloaded, unpacked
//! and kept in the target folder.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    apt::{self, Apt},
    command,
    workspace::Workspace,
};

/// What is tested if nobody says otherwise: each long-term series that a distribution still ships, and the
/// newest kernel that there is.
pub(super) const DEFAULT: [&str; 5] = ["5.10", "6.1", "6.12", "6.18", "7"];

/// Where they are.
const SUITES: [&str; 4] = ["bullseye", "bookworm", "bookworm-backports", "trixie-backports"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long lists of packages are good for.
const FRESH: Duration = Duration::from_hours(24);

/// A kernel that can be started.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    /// Its version: `6.12.95`.
    pub(super) version: String,
    /// The image.
    pub(super) image: PathBuf,
    /// The folder of its modules.
    pub(super) modules: PathBuf,
}

/// Finds or gets the newest kernel of each series: `6.12`, or `7` for any that starts so.
pub(super) fn find_or_get(workspace: &Workspace, folder: &Path, series: &[&str]) -> Result<Vec<Kernel>> {
    let packages = Packages::load(workspace, folder).unwrap_or_else(|error| {
        eprintln!("note: {error:#}; kernels that were fetched before are used");
        Packages { apt: None, images: Vec::new() }
    });
    let kernels = folder.join("kernels");
    series
        .iter()
        .map(|series| {
            if let Some(image) = newest(&packages.images, series) {
                let root = kernels.join(&image.version);
                if root.exists() {
                    return kernel(&root);
                }
                match packages.get(workspace, folder, image, &root) {
                    Ok(()) => return kernel(&root),
                    Err(error) => eprintln!("note: kernel {}: {error:#}", image.version),
                }
            }
            let root = cached(&kernels, series).with_context(|| {
                format!(
                    "there is no kernel {series} in {} and none in {}",
                    SUITES.join(", "),
                    kernels.display()
                )
            })?;
            eprintln!("note: kernel {series}: {} of an earlier run is used", root.display());
            kernel(&root)
        })
        .collect()
}

/// What the suites have.
struct Packages {
    apt: Option<Apt>,
    images: Vec<Image>,
}

/// A package with a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Image {
    version: String,
    /// The version with the package's revision, to compare by.
    order: Vec<u64>,
    /// The packages that have its parts.
    packages: Vec<String>,
}

impl Packages {
    fn load(workspace: &Workspace, folder: &Path) -> Result<Self> {
        ensure!(
            apt::is_here(),
            "there is no apt here, and kernels come as Debian's packages: run this on Debian"
        );
        let lists = folder.join("apt");
        let sources = lists.join("kernels.sources");
        let apt = Apt::with_sources(&lists, &sources);
        let text = sources_text(&mirror(workspace)?);
        let age = |file: &Path| fs::metadata(file).ok()?.modified().ok()?.elapsed().ok();
        if fs::read_to_string(&sources).is_ok_and(|old| old == text)
            && age(&sources).is_some_and(|age| age < FRESH)
        {
            let images = images(&apt.available(workspace)?);
            return Ok(Self { apt: Some(apt), images });
        }
        fs::create_dir_all(&lists).with_context(|| format!("create {}", lists.display()))?;
        let write = || fs::write(&sources, &text).with_context(|| format!("write {}", sources.display()));
        write()?;
        // One suite may be gone, and the others still there. The file's time says when all were fetched.
        if let Err(error) = apt.update(workspace) {
            eprintln!("note: {error:#}; kernels are looked for in what could be fetched");
            fs::File::options()
                .append(true)
                .open(&sources)
                .and_then(|file| file.set_modified(std::time::UNIX_EPOCH))
                .with_context(|| format!("mark {} as old", sources.display()))?;
        }
        let images = images(&apt.available(workspace)?);
        Ok(Self { apt: Some(apt), images })
    }

    fn get(&self, workspace: &Workspace, folder: &Path, image: &Image, root: &Path) -> Result<()> {
        let Self { apt, images: _ } = self;
        let apt = apt.as_ref().context("there are no package lists")?;
        let debs = folder.join("debs");
        apt.download(workspace, &image.packages, &debs)?;
        fs::create_dir_all(root.parent().context("a kernel's folder has no parent")?)
            .with_context(|| format!("create the parent of {}", root.display()))?;
        apt::unpack(workspace, &debs, root)?;
        apt::remove(&debs)
    }
}

/// The server that this Debian has its packages from.
fn mirror(workspace: &Workspace) -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let field = |name: &str| {
        release
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    let id = field("ID").unwrap_or("unknown");
    ensure!(id == "debian", "this is `{id}`, and the kernels are Debian's: run this on Debian");
    let targets = command::output(workspace.command("apt-get").args([
        "indextargets",
        "--format",
        "$(IDENTIFIER) $(REPO_URI) $(RELEASE) $(COMPONENT)",
    ]))?;
    mirror_of(&targets, field("VERSION_CODENAME").unwrap_or("stable"))
        .map(str::to_owned)
        .context("apt's sources name no server of Debian's main packages")
}

/// The server of a release's main packages, from `apt-get indextargets`.
fn mirror_of<'a>(targets: &'a str, codename: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| match *line.split(' ').collect::<Vec<_>>().as_slice() {
        ["Packages", server, release, "main"]
            if [codename, "stable", "testing", "unstable", "sid"].contains(&release) =>
        {
            Some(server)
        }
        _ => None,
    })
}

/// Sources with all suites. Descriptions and icons of packages are not fetched.
fn sources_text(mirror: &str) -> String {
    let keyring = if Path::new(KEYRING).exists() { format!("Signed-By: {KEYRING}\n") } else { String::new() };
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {}\nComponents: main\nArchitectures: amd64\nLanguages: none\n\
         Targets: Packages\n{keyring}",
        SUITES.join(" ")
    )
}

/// The kernels in a list of packages: signed, for virtual machines.
fn images(available: &str) -> Vec<Image> {
    available.split("\n\n").filter_map(image).collect()
}

fn image(paragraph: &str) -> Option<Image> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let package = field("Package")?;
    let release = package.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
    if !release.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let full = field("Version")?;
    // New packages are empty and depend on these.
    let parts =
        [format!("linux-binary-{release}-cloud-amd64"), format!("linux-modules-{release}-cloud-amd64")];
    let depends = field("Depends").unwrap_or_default();
    let packages =
        if parts.iter().all(|part| depends.contains(part)) { parts.into() } else { vec![package.to_owned()] };
    let version = full.split(['-', '~', '+']).next()?.to_owned();
    Some(Image { version, order: numbers(full), packages })
}

/// The numbers in a version.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn newest<'a>(images: &'a [Image], series: &str) -> Option<&'a Image> {
    images.iter().filter(|image| is_of(&image.version, series)).max_by_key(|image| &image.order)
}

/// Whether a version starts with the numbers of a series.
fn is_of(version: &str, series: &str) -> bool {
    numbers(version).starts_with(&numbers(series))
}

/// The newest kernel of a series that was fetched before.
fn cached(kernels: &Path, series: &str) -> Option<PathBuf> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::read_dir(kernels)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_of(&name(path), series) && !name(path).ends_with(".partial"))
        .max_by_key(|path| numbers(&name(path)))
}

/// Describes an unpacked kernel.
fn kernel(root: &Path) -> Result<Kernel> {
    let version = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some(modules) =
        ["lib/modules", "usr/lib/modules"].iter().find_map(|folder| first(&root.join(folder), ""))
    else {
        bail!("{} has no modules; remove it and try again", root.display());
    };
    let image = first(&root.join("boot"), "vmlinuz")
        .or_else(|| Some(modules.join("vmlinuz")).filter(|image| image.exists()))
        .with_context(|| format!("{} has no kernel; remove it and try again", root.display()))?;
    Ok(Kernel { version, image, modules })
}

/// The first entry of a folder with a name that starts like this.
fn first(folder: &Path, prefix: &str) -> Option<PathBuf> {
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Package: linux-image-6.12.90+deb12-cloud-amd64\nVersion: 6.12.90-1~bpo12+1\nDepends: kmod\n\n\
        Package: linux-image-6.12.90+deb12.1-cloud-amd64\nVersion: 6.12.90-2~bpo12+1\nDepends: kmod\n\n\
        Package: linux-image-6.12.9-cloud-amd64-unsigned\nVersion: 6.12.95-1\n\n\
        Package: linux-image-cloud-amd64\nVersion: 6.12.99-1\n\n\
        Package: linux-image-6.1.0-50-cloud-amd64\nVersion: 6.1.176-1\nDepends: kmod, linux-base\n\n\
        Package: linux-image-5.10.0-32-cloud-amd64\nVersion: 5.10.223-1\n\n\
        Package: linux-image-7.0.13+deb13-cloud-amd64\nVersion: 7.0.13-1~bpo13+1\n\n\
        Package: linux-image-7.3.4+deb13-cloud-amd64\nVersion: 7.3.4-1~bpo13+1\nDepends: \
        linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-cloud-amd64 (= 7.3.4-1)\n";

    #[test]
    fn the_newest_of_a_series_is_chosen() {
        let images = images(LIST);
        let choose = |series| newest(&images, series).map(|image| image.packages.join(" "));
        for (series, package) in [
            ("6.12", Some("linux-image-6.12.90+deb12.1-cloud-amd64")),
            ("6.1", Some("linux-image-6.1.0-50-cloud-amd64")),
            ("5.10", Some("linux-image-5.10.0-32-cloud-amd64")),
            ("7", Some("linux-binary-7.3.4+deb13-cloud-amd64 linux-modules-7.3.4+deb13-cloud-amd64")),
            ("7.0", Some("linux-image-7.0.13+deb13-cloud-amd64")),
            ("5.1", None),
            ("6.2", None),
        ] {
            assert_eq!(choose(series).as_deref(), package, "{series}");
        }
        assert_eq!(newest(&images, "5.10").map(|image| image.version.as_str()), Some("5.10.223"));
    }

    #[test]
    fn the_mirror_is_the_systems_own() {
        let targets = "Packages https://apt.example.net/tool/ tool-bookworm main\n\
                       DEP-11 http://mirror.example.org/debian/ bookworm main\n\
                       Packages http://mirror.example.org/debian-security/ bookworm-security main\n\
                       Packages http://mirror.example.org/debian/ bookworm main\n";
        assert_eq!(mirror_of(targets, "bookworm"), Some("http://mirror.example.org/debian/"));
        assert_eq!(mirror_of(targets, "trixie"), None);
    }
}
