//! What `up` tells the operator: what it did, and exactly how to let the first runner in.

use std::fmt::Write;

use super::Options;
use crate::config::{Config, Pool};
use crate::service::{self, Instance};

/// Prints it.
pub(super) fn greet(options: &Options<'_>, instance: &Instance) {
    (options.say)(&text(options, instance));
}

fn text(options: &Options<'_>, instance: &Instance) -> String {
    let config = instance.config.get();
    let facts = &instance.facts;
    let startup = instance.authority.startup();
    let plane = &facts.dataplane;
    let mut out = String::new();
    let ca = if startup.created_ca { "created" } else { "kept" };
    let _ = writeln!(out, "runnel {} is {}", env!("CARGO_PKG_VERSION"), facts.id);
    let _ = writeln!(out, "  data plane  on {}: {}", plane.interface, plane.why);
    let _ = writeln!(
        out,
        "  CA          {ca} in {}, root SHA-256 {}",
        facts.state,
        instance.authority.root_fingerprint()
    );
    for listener in &facts.listeners {
        let _ = writeln!(out, "  {:<11} {}", listener.service, listener.address);
    }
    for pool in &config.pools {
        let networks: Vec<_> = pool.addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(out, "  pool        {} {}", pool.name, networks.join(", "));
    }
    if config.source.is_none() {
        out.push_str(BUILT_IN);
    }
    if let Some(recipe) = recipe(&Recipe::of(options, instance, &config)) {
        out.push('\n');
        out.push_str(&recipe);
    }
    out
}

const BUILT_IN: &str = "
There is no configuration: the role builder reaches only the page on the gateway's tunnel address.
To let it reach more, put this into /etc/runnel/runnel.toml and restart:

  [[pool]]
  name = \"runners\"
  addresses = [\"10.77.0.0/16\", \"fd77::/64\"]

  [[role]]
  name = \"builder\"
  pool = \"runners\"
  allow = [\"10.20.0.10:443/tcp\", \"10.20.1.0/24\"]
";

/// What the recipe is made of.
struct Recipe {
    flags: String,
    role: Option<String>,
    networks: Vec<String>,
    v6: bool,
    page: Option<String>,
    id: String,
    host: String,
    enrol: String,
    status_port: u16,
    fingerprint: String,
}

impl Recipe {
    fn of(options: &Options<'_>, instance: &Instance, config: &Config) -> Self {
        let role = config.roles.first();
        let pool = role.and_then(|role| config.pool(&role.pool));
        let mut networks: Vec<String> = Vec::new();
        for entry in role.iter().flat_map(|role| &role.allow) {
            let network = entry.net.to_string();
            if !networks.contains(&network) {
                networks.push(network);
            }
        }
        let flags = if options.state == std::path::Path::new("/var/lib/runnel") {
            String::new()
        } else {
            format!(" --state {}", options.state.display())
        };
        let id = instance.facts.id.clone();
        Self {
            flags,
            role: role.map(|role| role.name.clone()),
            networks,
            v6: pool.is_some_and(|pool| pool.addresses.iter().any(|net| net.addr().is_ipv6())),
            page: pool
                .and_then(|pool| pool.addresses.first())
                .map(|net| Pool::gateway_address(*net).to_string()),
            host: service::client_host(config, &id),
            enrol: service::enrol_url(config, &id),
            status_port: config.pki.status_listen.port(),
            fingerprint: instance.authority.root_fingerprint(),
            id,
        }
    }
}

fn recipe(recipe: &Recipe) -> Option<String> {
    let Recipe { flags, networks, id, host, enrol, status_port, fingerprint, .. } = recipe;
    let role = recipe.role.as_ref()?;
    let vips = if recipe.v6 { "0.0.0.0,::" } else { "0.0.0.0" };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let page = recipe.page.as_deref().map_or_else(String::new, |page| {
        format!(
            "  curl http://{page}/                      # says who you are, where the role may\n"
        )
    });
    let networks = networks.join(",");
    Some(format!(
        "Let the first runner in. Here:

  runnel{flags} token create --role {role}        # prints TOKEN, good for one runner

On the runner (Debian: charon-systemd strongswan-swanctl strongswan-pki), as root:

  umask 077
  curl -fsS http://{host}:{status_port}/root.pem -o root.pem
  openssl x509 -in root.pem -outform der | sha256sum
       # must say {fingerprint}
  pki --gen --type ecdsa --size 256 --outform pem > /etc/swanctl/private/runner.pem
  pki --req --in /etc/swanctl/private/runner.pem --type ecdsa --dn \"CN=runner\" > req.der
  pki --estca --url {enrol} --cacert root.pem \\
       --caout /etc/swanctl/x509ca/runnel.pem --outform pem --force
  pki --est --url {enrol} --cacert root.pem --cacert /etc/swanctl/x509ca/runnel-1.pem \\
       --in req.der --userpass {role}:TOKEN --outform pem > /etc/swanctl/x509/runner.pem
  rm req.der
  cat > /etc/swanctl/conf.d/runnel.conf <<END
  connections {{
    runnel {{
      version = 2
      remote_addrs = {address}
      vips = {vips}
      keyingtries = 0
      dpd_delay = 10s
      local {{
        auth = pubkey
        certs = runner.pem
        id = $(pki --dn --in /etc/swanctl/x509/runner.pem)
      }}
      remote {{
        auth = pubkey
        id = {id}
      }}
      children {{
        net {{
          remote_ts = {networks}
          start_action = start
          dpd_action = restart
          close_action = start
        }}
      }}
    }}
  }}
  END
  swanctl --load-all
{page}
End its access at any time: `runnel{flags} lease list`, then `runnel{flags} lease release ID`.
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_names_the_real_hosts_and_roles() {
        let made = recipe(&Recipe {
            flags: " --state /tmp/s".to_owned(),
            role: Some("builder".to_owned()),
            networks: vec!["10.77.0.1/32".to_owned(), "fd77::1/128".to_owned()],
            v6: true,
            page: Some("10.77.0.1".to_owned()),
            id: "gw.example.com".to_owned(),
            host: "192.0.2.1".to_owned(),
            enrol: "https://192.0.2.1:8443".to_owned(),
            status_port: 8080,
            fingerprint: "ab12".to_owned(),
        })
        .unwrap();
        for part in [
            "runnel --state /tmp/s token create --role builder",
            "--url https://192.0.2.1:8443 --cacert root.pem",
            "--userpass builder:TOKEN",
            "remote_addrs = 192.0.2.1",
            "id = gw.example.com",
            "vips = 0.0.0.0,::",
            "remote_ts = 10.77.0.1/32,fd77::1/128",
            "http://192.0.2.1:8080/root.pem",
        ] {
            assert!(made.contains(part), "{part} is missing:\n{made}");
        }
        // One setting per line is all strongSwan's parser takes.
        let conf = made.split("<<END").nth(1).unwrap().split("  END\n").next().unwrap();
        assert!(conf.lines().all(|line| line.matches('=').count() <= 1));
    }
}
