//! A host: one network namespace with its interfaces, addresses, routes and firewall.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{Lab, cmd};

/// One network namespace of a lab.
#[derive(Clone)]
pub struct Host {
    lab: Lab,
    name: String,
    namespace: String,
}

impl Host {
    /// Creates the namespace `PREFIX-name` with `lo` up and reverse path filters off.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let host = Self::named(lab, name);
        cmd::run("ip", &["netns", "add", &host.namespace])?;
        host.ip("link set lo up")?;
        host.settle()?;
        Ok(host)
    }

    /// Creates several in one go, with `lo` still down. Where machines are emulated, starting a
    /// program costs more than what it does.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn all(lab: &Lab, names: &[String]) -> Result<Vec<Self>> {
        let hosts: Vec<Self> = names.iter().map(|name| Self::named(lab, name)).collect();
        let lines = hosts.iter().map(|host| format!("netns add {}\n", host.namespace));
        let mut command = Command::new("ip");
        cmd::feed(command.args(["-batch", "-"]), &lines.collect::<String>())?;
        hosts.iter().try_for_each(Self::settle)?;
        Ok(hosts)
    }

    fn named(lab: &Lab, name: &str) -> Self {
        let namespace = format!("{}-{name}", lab.prefix());
        Self { lab: lab.clone(), name: name.to_owned(), namespace }
    }

    fn settle(&self) -> Result<()> {
        self.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        self.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        // Duplicate address detection would delay every IPv6 address by a second.
        self.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        self.sysctl("net/ipv6/conf/default/accept_dad", "0")
    }

    /// The name of its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The lab this host belongs to.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The host's short name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder for this host's files.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn dir(&self) -> Result<PathBuf> {
        let dir = self.lab.path(&self.name);
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A command that runs on this host. Its process id is the program's own.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a program on this host; its standard output is the result.
    ///
    /// # Errors
    /// When it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        cmd::checked(self.command(program).args(args))
    }

    /// Runs a program on this host and reports what it said.
    ///
    /// # Errors
    /// Only when it cannot be started.
    pub fn output(&self, program: &str, args: &[&str]) -> Result<cmd::Said> {
        cmd::output(self.command(program).args(args))
    }

    /// Runs `ip` on this host; words are separated by spaces.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.namespace]).args(words.split_whitespace());
        cmd::checked(&mut command)
    }

    /// Runs several `ip` commands on this host in one go.
    ///
    /// # Errors
    /// When `ip` refuses one; those after it are not run.
    pub fn batch(&self, lines: &[String]) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.namespace, "-batch", "-"]);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        cmd::feed(&mut command, &text).map(drop).with_context(|| text)
    }

    /// Loads nftables rules on this host.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn nft(&self, rules: &str) -> Result<()> {
        cmd::feed(self.command("nft").args(["-f", "-"]), rules).map(drop)
    }

    /// Writes a sysctl of this host, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When the key does not exist or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| fs::write(&path, value))?.with_context(|| format!("sysctl {key}={value}"))
    }

    /// Lets the host forward both families.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net/ipv4/ip_forward", "1")?;
        self.sysctl("net/ipv6/conf/all/forwarding", "1")
    }

    /// Hides everything that leaves by `interface` behind that interface's address.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub fn masquerade(&self, interface: &str) -> Result<()> {
        self.nft(&format!(
            "table ip lab_nat {{ chain post {{ type nat hook postrouting priority 100; \
             oifname \"{interface}\" masquerade; }}\n}}"
        ))
    }

    /// Runs `work` on a thread that lives in this namespace. Sockets made there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(format!("/run/netns/{}", self.namespace))
            .with_context(|| format!("host {} has no namespace", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a thread on host {} panicked", self.name))?
        })
    }

    /// A TCP listener on this host.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        self.enter(|| TcpListener::bind(address))?.with_context(|| format!("cannot bind {address}"))
    }

    /// Adds an address to an interface and sets it up.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev {interface}{nodad}"))?;
        self.ip(&format!("link set {interface} up")).map(drop)
    }

    /// Adds a route, for example `default via 10.0.0.1`.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn route(&self, route: &str) -> Result<()> {
        let family = if route.contains(':') { "-6 " } else { "" };
        self.ip(&format!("{family}route add {route}")).map(drop)
    }

    /// Reads a counter file such as `/sys/class/net/...` as seen from this host.
    ///
    /// # Errors
    /// When the host has no such interface.
    pub fn has_interface(&self, interface: &str) -> Result<bool> {
        Ok(self.ip("-o link show")?.lines().any(|line| {
            line.split(": ").nth(1).and_then(|n| n.split('@').next()) == Some(interface)
        }))
    }
}

/// Joins two hosts by a cable (veth pair) with the given MTU and sets both ends up.
///
/// # Errors
/// When `ip` refuses.
pub fn cable(a: &Host, a_name: &str, b: &Host, b_name: &str, mtu: u32) -> Result<()> {
    a.ip(&format!(
        "link add name {a_name} mtu {mtu} type veth peer name {b_name} mtu {mtu} netns {}",
        b.namespace
    ))?;
    a.ip(&format!("link set {a_name} up"))?;
    b.ip(&format!("link set {b_name} up")).map(drop)
}
