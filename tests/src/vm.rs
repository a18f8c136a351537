//! A device that is a whole machine, with firmware, Debian's kernel and an init: the agent reboots it and switches it off for real.
//!
//! QEMU emulates it in software, so it takes no right to a hypervisor, and some seconds to boot. It boots from an initramfs that is
//! made here of busybox and the agent (`tests/vm` has what it does when it boots), and keeps the agent's state on a disk of its own.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;

use crate::poll::wait_for;
use crate::program::{Program, binary, bound};
use crate::server::{ENROLL_NAME, SERVER_NAME};

/// Until it has booted and its agent has a link. Software emulation on a busy machine is slow.
pub const BOOT_LIMIT: Duration = Duration::from_secs(180);

const BUSYBOX: &str = "/bin/busybox";
/// What of busybox is used, by `rc`, by `inittab` and by the agent.
const APPLETS: [&str; 10] = ["sh", "init", "mount", "umount", "insmod", "ip", "cat", "echo", "reboot", "poweroff"];
const DIRECTORIES: [&str; 9] = ["bin", "etc", "modules", "data", "proc", "sys", "dev", "run", "tmp"];
/// What `tests/scripts/vm-kernel.sh` has unpacked.
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vm/kernel");
const RC: &str = include_str!("../vm/rc");
const INITTAB: &str = include_str!("../vm/inittab");
const MEMORY: &str = "256M";
const DISK: &str = "32M";
/// The machine that runs QEMU, as seen from inside: its loopback.
const HOST: &str = "10.0.2.2";

/// A virtual machine. Dropped, it loses power.
#[derive(Debug)]
pub struct Vm {
    directory: PathBuf,
    running: Option<Program>,
}

impl Vm {
    /// Builds a machine, switched off, that will enroll with `token` at `server`, which is on loopback.
    pub fn new(directory: &Path, server: SocketAddr, ca_file: &Path, token: &str) -> anyhow::Result<Self> {
        let data = directory.join("data");
        std::fs::create_dir_all(&data)?;
        std::fs::write(data.join("agent.toml"), config(server.port()))?;
        std::fs::copy(ca_file, data.join("ca.pem"))?;
        std::fs::write(data.join("token"), token)?;
        let disk = directory.join("disk");
        run(Command::new("/sbin/mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&data).arg(&disk).arg(DISK))?;
        initramfs(directory)?;
        Ok(Self { directory: directory.to_owned(), running: None })
    }

    pub fn power_on(&mut self) -> anyhow::Result<()> {
        let mut command = bound("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
            .arg("-kernel")
            .arg(Path::new(KERNEL).join("vmlinuz"))
            .arg("-initrd")
            .arg(self.directory.join("initramfs"))
            // A panic would hang the machine.
            .args(["-append", "console=ttyS0 rdinit=/bin/init panic=1 quiet"])
            .arg("-drive")
            .arg(format!("if=virtio,format=raw,file={}", self.directory.join("disk").display()))
            .args(["-nic", "user,model=virtio-net-pci", "-device", "virtio-rng-pci"]);
        self.running = Some(Program::start("qemu-system-x86_64", command, &self.console_file())?);
        Ok(())
    }

    /// Pulls the plug.
    pub fn power_cut(&mut self) -> anyhow::Result<()> {
        let mut program = self.running.take().context("it is off")?;
        program.signal(Signal::SIGKILL)?;
        program.wait(BOOT_LIMIT)?.context("QEMU outlives SIGKILL")?;
        Ok(())
    }

    /// Waits until the machine has switched itself off.
    pub async fn wait_until_off(&mut self) -> anyhow::Result<()> {
        let program = self.running.as_mut().context("it was never on")?;
        let status =
            wait_for("the machine to be off", BOOT_LIMIT, async || program.exit_status()?.context("it is on")).await?;
        anyhow::ensure!(status.success(), "QEMU ended with {status}:\n{}", self.console()?);
        self.running = None;
        Ok(())
    }

    /// What the kernel called each boot, as the console says, first to last.
    pub fn boot_ids(&self) -> anyhow::Result<Vec<String>> {
        let console = self.console()?;
        Ok(console.lines().filter_map(|line| line.trim().strip_prefix("boot id: ")).map(ToOwned::to_owned).collect())
    }

    /// All that the kernel and the agent have printed.
    pub fn console(&self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.console_file())?).into_owned())
    }

    fn console_file(&self) -> PathBuf {
        self.directory.join("console.log")
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _off = self.power_cut();
    }
}

fn config(port: u16) -> String {
    format!(
        r#"state_dir = "/data/state"

[server]
host = "{SERVER_NAME}"
port = {port}
enroll_name = "{ENROLL_NAME}"
address = "{HOST}:{port}"
ca_file = "/data/ca.pem"

[power]
reboot_argv = ["/bin/reboot"]
shutdown_argv = ["/bin/poweroff"]
"#
    )
}

/// busybox, the agent with the libraries that it is linked with, and the kernel's modules, as one archive.
fn initramfs(directory: &Path) -> anyhow::Result<()> {
    let root = directory.join("root");
    for name in DIRECTORIES {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy(BUSYBOX, root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let agent = binary("cloudlink-agent")?;
    // Lines of code are of no use in there, and are most of the program.
    run(Command::new("strip").arg("-o").arg(root.join("bin/cloudlink-agent")).arg(&agent))?;
    for library in libraries(&agent)? {
        let place = root.join(library.strip_prefix("/")?);
        std::fs::create_dir_all(place.parent().context("a library is in a directory")?)?;
        std::fs::copy(&library, place)?;
    }
    std::fs::write(root.join("etc/rc"), RC)?;
    std::fs::set_permissions(root.join("etc/rc"), Permissions::from_mode(0o755))?;
    std::fs::write(root.join("etc/inittab"), INITTAB)?;
    let modules = std::fs::read_dir(KERNEL).context("there is no kernel: tests/scripts/vm-kernel.sh")?;
    for module in modules {
        let module = module?.path();
        if module.extension().is_some_and(|extension| extension == "ko") {
            std::fs::copy(&module, root.join("modules").join(module.file_name().context("a file has a name")?))?;
        }
    }
    run(Command::new("sh").current_dir(&root).args(["-c", "find . | cpio --quiet -o -H newc -R 0:0 >../initramfs"]))
}

/// The shared libraries of a program, and what loads them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    anyhow::ensure!(output.status.success(), "ldd ended with {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?} ended with {}: {said}", output.status);
    Ok(())
}
