//! The snapshot's octets: a version, then fields in a fixed order, numbers big endian, octet
//! strings and lists with a count in front. A change of the order or of a field is a new version;
//! the one before it is still read, so that tunnels outlive an upgrade.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{SavedChild, SavedRequest, SavedResponse, SavedTraits, Snapshot, SnapshotError};
use crate::crypto::{IkeKeys, SecretBytes};
use crate::io::{ChildKeys, ChildSaId, Grant, Hosts, IkeSaId, LeaseId, UniquePolicy};
use crate::time::WallTime;
use crate::wire::{Identification, IkeSpi, MessageIdSync, TrafficSelector};

/// The version written.
const VERSION: u8 = 6;

/// The first with the time since the connection was established.
const WITH_CONNECTED_FOR: u8 = 6;

/// The oldest that is read.
const OLDEST: u8 = 5;

impl Snapshot {
    /// The octets; erased when dropped.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut w = Out(Zeroizing::new(Vec::with_capacity(2048)));
        w.u8(VERSION);
        w.u64(self.ike.0);
        w.bool(self.initiator);
        w.bool(self.client);
        w.u64(self.spi_i.0);
        w.u64(self.spi_r.0);
        w.socket(self.local);
        w.socket(self.remote);
        w.bool(self.encap);
        w.text(&self.suite.to_string());
        let keys = &self.keys;
        for key in [&keys.d, &keys.ai, &keys.ar, &keys.ei, &keys.er, &keys.pi, &keys.pr] {
            w.bytes(key.expose());
        }
        w.u32(self.next_request);
        w.u32(self.next_expected);
        w.option(self.outstanding.as_ref(), |w, request| {
            w.u32(request.message_id);
            w.u8(request.exchange.value());
            w.list(&request.packets, |w, packet| w.bytes(packet));
            w.option(request.child_spi.as_ref(), |w, spi| w.u32(*spi));
        });
        w.option(self.cached.as_ref(), |w, response| {
            w.u32(response.message_id);
            w.list(&response.packets, |w, packet| w.bytes(packet));
        });
        let peer = &self.peer;
        for flag in [
            peer.fragmentation,
            peer.peer_behind_nat,
            peer.we_behind_nat,
            peer.nat_detection,
            peer.mobike,
            peer.redirect,
            peer.force_encap,
        ] {
            w.bool(flag);
        }
        w.list(&peer.hashes, |w, hash| w.u16(hash.value()));
        w.bool(peer.message_id_sync);
        w.option(peer.token.as_ref(), |w, token| w.bytes(token));
        w.option(peer.synchronised.as_ref(), |w, told| {
            w.u32(told.nonce);
            w.u32(told.next_send);
            w.u32(told.next_receive);
        });
        w.text(&self.name);
        w.u8(self.identity.id_type.value());
        w.bytes(&self.identity.data);
        w.grant(&self.grant);
        w.duration(self.age);
        w.duration(self.connected_for);
        w.option(self.rekey_in.as_ref(), |w, left| w.duration(*left));
        w.list(&self.children, Out::child);
        w.0
    }

    /// Reads what [`Snapshot::encode`] wrote, in this release or the one before.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn decode(octets: &[u8]) -> Result<Self, SnapshotError> {
        let mut r = In(octets);
        let version = r.u8()?;
        if !(OLDEST..=VERSION).contains(&version) {
            return Err(SnapshotError::Version(version));
        }
        let known = |since: u8| version >= since;
        let mut snapshot = Self {
            ike: IkeSaId(r.u64()?),
            initiator: r.bool()?,
            client: r.bool()?,
            spi_i: IkeSpi(r.u64()?),
            spi_r: IkeSpi(r.u64()?),
            local: r.socket()?,
            remote: r.socket()?,
            encap: r.bool()?,
            suite: r.parsed("suite")?,
            keys: Arc::new(IkeKeys {
                d: r.secret()?,
                ai: r.secret()?,
                ar: r.secret()?,
                ei: r.secret()?,
                er: r.secret()?,
                pi: r.secret()?,
                pr: r.secret()?,
            }),
            next_request: r.u32()?,
            next_expected: r.u32()?,
            outstanding: r.option(|r| {
                Ok(SavedRequest {
                    message_id: r.u32()?,
                    exchange: r.u8()?.into(),
                    packets: r.list(In::vec)?,
                    child_spi: r.option(In::u32)?,
                })
            })?,
            cached: r.option(|r| {
                Ok(SavedResponse { message_id: r.u32()?, packets: r.list(In::vec)? })
            })?,
            peer: SavedTraits {
                fragmentation: r.bool()?,
                peer_behind_nat: r.bool()?,
                we_behind_nat: r.bool()?,
                nat_detection: r.bool()?,
                mobike: r.bool()?,
                redirect: r.bool()?,
                force_encap: r.bool()?,
                hashes: r.list(|r| Ok(r.u16()?.into()))?,
                message_id_sync: r.bool()?,
                token: r.option(In::vec)?,
                synchronised: r.option(|r| {
                    let (nonce, next_send) = (r.u32()?, r.u32()?);
                    Ok(MessageIdSync { nonce, next_send, next_receive: r.u32()? })
                })?,
            },
            name: r.text("name")?,
            identity: Identification { id_type: r.u8()?.into(), data: r.vec()? },
            grant: Arc::new(r.grant()?),
            age: r.duration()?,
            connected_for: if known(WITH_CONNECTED_FOR) { r.duration()? } else { Duration::ZERO },
            rekey_in: r.option(In::duration)?,
            children: r.list(In::child)?,
        };
        if !known(WITH_CONNECTED_FOR) {
            snapshot.connected_for = snapshot.age;
        }
        match r.0.len() {
            0 => Ok(snapshot),
            more => Err(SnapshotError::Trailing(more)),
        }
    }
}

struct Out(Zeroizing<Vec<u8>>);

impl Out {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Nothing in a snapshot comes near 4 GiB.
    fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.0.extend_from_slice(value);
    }

    fn text(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    fn duration(&mut self, value: Duration) {
        self.u64(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }

    fn list<T>(&mut self, items: &[T], each: impl Fn(&mut Self, &T)) {
        self.count(items.len());
        items.iter().for_each(|item| each(self, item));
    }

    fn option<T>(&mut self, item: Option<&T>, each: impl FnOnce(&mut Self, &T)) {
        self.bool(item.is_some());
        if let Some(item) = item {
            each(self, item);
        }
    }

    fn ip(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    fn socket(&mut self, address: SocketAddr) {
        self.ip(address.ip());
        self.u16(address.port());
    }

    fn selector(&mut self, ts: &TrafficSelector) {
        self.u8(ts.protocol);
        self.u16(ts.start_port);
        self.u16(ts.end_port);
        self.ip(ts.start);
        self.ip(ts.end);
    }

    fn grant(&mut self, grant: &Grant) {
        self.text(&grant.lease.0);
        self.text(&grant.role);
        self.u32(grant.reqid);
        self.list(&grant.addresses, |w, address| w.ip(*address));
        self.list(&grant.dns, |w, address| w.ip(*address));
        self.list(&grant.allowed, Self::selector);
        self.list(&grant.networks, Self::selector);
        self.bool(grant.transport);
        self.0.extend_from_slice(&grant.deadline.0.to_be_bytes());
        self.u8(match grant.unique {
            UniquePolicy::Replace => 0,
            UniquePolicy::Keep => 1,
            UniquePolicy::Reject => 2,
        });
    }

    fn child(&mut self, child: &SavedChild) {
        self.u64(child.id.0);
        self.u32(child.spi_in);
        self.u32(child.spi_out);
        self.text(&child.suite.to_string());
        for keys in [&child.keys_in, &child.keys_out] {
            self.bytes(&keys.encr);
            self.bytes(&keys.integ);
        }
        self.bool(child.transport);
        self.list(&child.ts_local, Self::selector);
        self.list(&child.ts_remote, Self::selector);
        self.socket(child.hosts.local);
        self.socket(child.hosts.remote);
        self.bool(child.hosts.encap);
        self.bool(child.outbound_active);
        self.option(child.replaced_by.as_ref(), |w, new| w.u64(new.0));
        self.bool(child.by_peer);
        self.bool(child.closing);
        self.duration(child.age);
        self.option(child.rekey_in.as_ref(), |w, left| w.duration(*left));
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SnapshotError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(SnapshotError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        self.take(N)?.try_into().map_err(|_| SnapshotError::Truncated)
    }

    fn u8(&mut self) -> Result<u8, SnapshotError> {
        self.array::<1>().map(|[octet]| octet)
    }

    fn u16(&mut self) -> Result<u16, SnapshotError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, SnapshotError> {
        self.array().map(u64::from_be_bytes)
    }

    fn bool(&mut self) -> Result<bool, SnapshotError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(SnapshotError::Field("flag")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], SnapshotError> {
        let len = self.u32()?;
        self.take(usize::try_from(len).map_err(|_| SnapshotError::Truncated)?)
    }

    fn vec(&mut self) -> Result<Vec<u8>, SnapshotError> {
        self.bytes().map(<[u8]>::to_vec)
    }

    fn secret(&mut self) -> Result<SecretBytes, SnapshotError> {
        self.bytes().map(SecretBytes::copy_from)
    }

    fn text(&mut self, what: &'static str) -> Result<String, SnapshotError> {
        String::from_utf8(self.vec()?).map_err(|_| SnapshotError::Field(what))
    }

    fn parsed<T: FromStr>(&mut self, what: &'static str) -> Result<T, SnapshotError> {
        self.text(what)?.parse().map_err(|_| SnapshotError::Field(what))
    }

    fn duration(&mut self) -> Result<Duration, SnapshotError> {
        self.u64().map(Duration::from_micros)
    }

    fn list<T>(
        &mut self,
        each: impl Fn(&mut Self) -> Result<T, SnapshotError>,
    ) -> Result<Vec<T>, SnapshotError> {
        let count = self.u32()?;
        // Grows with what is there, not with what is claimed.
        (0..count).map(|_| each(self)).collect()
    }

    fn option<T>(
        &mut self,
        each: impl FnOnce(&mut Self) -> Result<T, SnapshotError>,
    ) -> Result<Option<T>, SnapshotError> {
        if self.bool()? { each(self).map(Some) } else { Ok(None) }
    }

    fn ip(&mut self) -> Result<IpAddr, SnapshotError> {
        let octets = self.bytes()?;
        if let Ok(v4) = <[u8; 4]>::try_from(octets) {
            return Ok(v4.into());
        }
        let v6 = <[u8; 16]>::try_from(octets).map_err(|_| SnapshotError::Field("address"))?;
        Ok(v6.into())
    }

    fn socket(&mut self) -> Result<SocketAddr, SnapshotError> {
        Ok(SocketAddr::new(self.ip()?, self.u16()?))
    }

    fn selector(&mut self) -> Result<TrafficSelector, SnapshotError> {
        Ok(TrafficSelector {
            protocol: self.u8()?,
            start_port: self.u16()?,
            end_port: self.u16()?,
            start: self.ip()?,
            end: self.ip()?,
        })
    }

    fn grant(&mut self) -> Result<Grant, SnapshotError> {
        Ok(Grant {
            lease: LeaseId(self.text("lease")?),
            role: self.text("role")?,
            reqid: self.u32()?,
            addresses: self.list(Self::ip)?,
            dns: self.list(Self::ip)?,
            allowed: self.list(Self::selector)?,
            networks: self.list(Self::selector)?,
            transport: self.bool()?,
            deadline: WallTime(i64::from_be_bytes(self.array()?)),
            unique: match self.u8()? {
                0 => UniquePolicy::Replace,
                1 => UniquePolicy::Keep,
                2 => UniquePolicy::Reject,
                _ => return Err(SnapshotError::Field("unique policy")),
            },
        })
    }

    fn child(&mut self) -> Result<SavedChild, SnapshotError> {
        Ok(SavedChild {
            id: ChildSaId(self.u64()?),
            spi_in: self.u32()?,
            spi_out: self.u32()?,
            suite: self.parsed("child suite")?,
            keys_in: ChildKeys { encr: self.vec()?, integ: self.vec()? },
            keys_out: ChildKeys { encr: self.vec()?, integ: self.vec()? },
            transport: self.bool()?,
            ts_local: self.list(Self::selector)?,
            ts_remote: self.list(Self::selector)?,
            hosts: Hosts { local: self.socket()?, remote: self.socket()?, encap: self.bool()? },
            outbound_active: self.bool()?,
            replaced_by: self.option(Self::u64)?.map(ChildSaId),
            by_peer: self.bool()?,
            closing: self.bool()?,
            age: self.duration()?,
            rekey_in: self.option(Self::duration)?,
        })
    }
}
