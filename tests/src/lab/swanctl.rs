//! Writes strongSwan's configuration files.
//!
//! strongSwan reads one setting per line; two on a line become one value. This writer cannot
//! produce anything else.

/// A configuration text under construction.
#[derive(Debug, Clone, Default)]
pub struct Conf {
    text: String,
    depth: usize,
}

impl Conf {
    /// An empty text.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `key = value`.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.line(&format!("{key} = {value}"));
        self
    }

    /// Adds a section whose contents `fill` writes.
    #[must_use]
    pub fn section(mut self, name: &str, fill: impl FnOnce(Self) -> Self) -> Self {
        self.line(&format!("{name} {{"));
        self.depth += 1;
        let mut inner = fill(self);
        inner.depth -= 1;
        inner.line("}");
        inner
    }

    /// The finished text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    fn line(&mut self, line: &str) {
        for _ in 0..self.depth {
            self.text.push_str("  ");
        }
        self.text.push_str(line);
        self.text.push('\n');
    }
}

/// One connection with one child, as a runner has it.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Name of the connection and of its only child.
    pub name: String,
    /// Our outer address; empty lets strongSwan choose.
    pub local_addr: String,
    /// The peer's outer address; `%any` accepts anybody.
    pub remote_addr: String,
    /// IKE suite in strongSwan's spelling; `default` takes strongSwan's list.
    pub ike: String,
    /// ESP suite in strongSwan's spelling.
    pub esp: String,
    /// Virtual addresses to ask for: `0.0.0.0`, `::`.
    pub vips: Vec<String>,
    /// Pools to hand out (responder).
    pub pools: Vec<String>,
    /// How we authenticate: `pubkey`, `psk`, `eap-tls`.
    pub local_auth: String,
    /// How the peer must authenticate.
    pub remote_auth: String,
    /// Certificate file below `x509/`; not used with `psk`.
    pub cert: String,
    /// Our identity.
    pub local_id: String,
    /// The identity the peer must prove.
    pub remote_id: String,
    /// Trust anchor below `x509ca/` the peer must chain to; empty accepts any loaded one.
    pub remote_ca: String,
    /// How the peer's certificate status is looked at: `strict`, `ifuri` or empty.
    pub revocation: String,
    /// Local traffic selectors; empty means `dynamic`.
    pub local_ts: String,
    /// Remote traffic selectors; empty means `dynamic`.
    pub remote_ts: String,
    /// Force UDP encapsulation.
    pub encap: bool,
    /// Dead peer detection interval in seconds; 0 is off.
    pub dpd: u32,
    /// A script that is run when the child comes up or goes.
    pub updown: String,
    /// Further settings of the connection.
    pub extra: Vec<(String, String)>,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            name: "net".to_owned(),
            local_addr: String::new(),
            remote_addr: "%any".to_owned(),
            ike: "aes256gcm16-prfsha256-x25519".to_owned(),
            esp: "aes256gcm16".to_owned(),
            vips: Vec::new(),
            pools: Vec::new(),
            local_auth: "pubkey".to_owned(),
            remote_auth: "pubkey".to_owned(),
            cert: "host.pem".to_owned(),
            local_id: String::new(),
            remote_id: "%any".to_owned(),
            remote_ca: String::new(),
            revocation: String::new(),
            local_ts: String::new(),
            remote_ts: String::new(),
            encap: false,
            dpd: 0,
            updown: String::new(),
            extra: Vec::new(),
        }
    }
}

impl Connection {
    /// Adds the connection to a `connections` section.
    #[must_use]
    pub fn write(&self, conf: Conf) -> Conf {
        conf.section(&self.name, |c| {
            let mut c = c.set("version", "2").set("remote_addrs", &self.remote_addr);
            if !self.local_addr.is_empty() {
                c = c.set("local_addrs", &self.local_addr);
            }
            c = c.set("proposals", &self.ike);
            if !self.vips.is_empty() {
                c = c.set("vips", &self.vips.join(","));
            }
            if !self.pools.is_empty() {
                c = c.set("pools", &self.pools.join(","));
            }
            c = c.set("mobike", "no").set("fragmentation", "yes");
            c = c.set("encap", if self.encap { "yes" } else { "no" });
            // One try: labs decide themselves when to try again.
            c = c.set("keyingtries", "1").set("dpd_delay", &format!("{}s", self.dpd));
            for (key, value) in &self.extra {
                c = c.set(key, value);
            }
            c.section("local", |l| {
                let mut l = l.set("auth", &self.local_auth);
                if self.local_auth != "psk" {
                    l = l.set("certs", &self.cert);
                }
                if self.local_id.is_empty() { l } else { l.set("id", &quoted(&self.local_id)) }
            })
            .section("remote", |r| {
                let mut r = r.set("auth", &self.remote_auth).set("id", &quoted(&self.remote_id));
                if !self.revocation.is_empty() {
                    r = r.set("revocation", &self.revocation);
                }
                if self.remote_ca.is_empty() { r } else { r.set("cacerts", &self.remote_ca) }
            })
            .section("children", |ch| {
                ch.section(&self.name, |k| {
                    let mut k = k.set("esp_proposals", &self.esp);
                    if !self.local_ts.is_empty() {
                        k = k.set("local_ts", &self.local_ts);
                    }
                    if !self.remote_ts.is_empty() {
                        k = k.set("remote_ts", &self.remote_ts);
                    }
                    if !self.updown.is_empty() {
                        k = k.set("updown", &self.updown);
                    }
                    k.set("dpd_action", "clear").set("start_action", "none")
                })
            })
        })
    }
}

fn quoted(value: &str) -> String {
    if value.contains([' ', ',', '=']) { format!("\"{value}\"") } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_holds_one_setting() {
        let connection = Connection { local_id: "CN=a, O=b".to_owned(), ..Connection::default() };
        let conf = Conf::new().section("connections", |c| connection.write(c));
        for line in conf.text().lines() {
            let opens = line.ends_with('{');
            let closes = line.trim() == "}";
            let settings = line.matches(" = ").count();
            assert!(opens || closes || settings == 1, "bad line: {line}");
        }
        assert!(conf.text().contains("id = \"CN=a, O=b\""));
        assert_eq!(conf.text().matches('{').count(), conf.text().matches('}').count());
    }
}
