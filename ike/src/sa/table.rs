//! All IKE SAs of an engine, found by our SPI, and half-open ones also by what a repeated
//! IKE_SA_INIT request carries.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::io::IkeSaId;
use crate::rng::SaRng;
use crate::sa::IkeSa;
use crate::wire::IkeSpi;

/// What makes an IKE_SA_INIT request the same one again (RFC 7296 2.1): the initiator's SPI, its
/// address and what it says. SPI and address alone are not enough behind a NAT.
///
/// What a cookie is bound to comes first, so that in the order all that one cookie made stands
/// together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InitKey {
    pub(crate) spi_i: IkeSpi,
    pub(crate) ip: IpAddr,
    pub(crate) nonce: Vec<u8>,
    pub(crate) port: u16,
    /// Of the whole request but the cookie and the solution in front of it.
    pub(crate) digest: Vec<u8>,
}

impl InitKey {
    fn one_cookie(&self, other: &Self) -> bool {
        (self.spi_i, self.ip, &self.nonce) == (other.spi_i, other.ip, &other.nonce)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SaTable {
    sas: BTreeMap<IkeSaId, Box<IkeSa>>,
    by_spi: BTreeMap<IkeSpi, IkeSaId>,
    by_init: BTreeMap<Arc<InitKey>, IkeSaId>,
    init_of: BTreeMap<IkeSaId, Arc<InitKey>>,
}

impl SaTable {
    /// Adds an SA.
    pub(crate) fn insert(&mut self, sa: Box<IkeSa>) {
        self.by_spi.insert(sa.own_spi(), sa.id);
        self.sas.insert(sa.id, sa);
    }

    /// Remembers which IKE_SA_INIT request made an SA.
    pub(crate) fn index_init(&mut self, key: InitKey, id: IkeSaId) {
        let key = Arc::new(key);
        self.init_of.insert(id, Arc::clone(&key));
        self.by_init.insert(key, id);
    }

    /// Forgets it: a late duplicate is then refused by the window or starts a handshake that
    /// nobody finishes.
    pub(crate) fn forget_init(&mut self, id: IkeSaId) {
        if let Some(key) = self.init_of.remove(&id) {
            self.by_init.remove(&key);
        }
    }

    /// Takes an SA out, for good.
    pub(crate) fn remove(&mut self, id: IkeSaId) -> Option<Box<IkeSa>> {
        let sa = self.sas.remove(&id)?;
        self.by_spi.remove(&sa.own_spi());
        self.forget_init(id);
        Some(sa)
    }

    /// Takes an SA out, to be put back with [`SaTable::insert`].
    pub(crate) fn take(&mut self, id: IkeSaId) -> Option<Box<IkeSa>> {
        self.sas.remove(&id)
    }

    pub(crate) fn get_mut(&mut self, id: IkeSaId) -> Option<&mut IkeSa> {
        self.sas.get_mut(&id).map(Box::as_mut)
    }

    pub(crate) fn get(&self, id: IkeSaId) -> Option<&IkeSa> {
        self.sas.get(&id).map(Box::as_ref)
    }

    /// The SA whose own SPI this is.
    pub(crate) fn by_spi(&self, spi: IkeSpi) -> Option<IkeSaId> {
        self.by_spi.get(&spi).copied()
    }

    /// The SA that this IKE_SA_INIT request made.
    pub(crate) fn by_init(&self, key: &InitKey) -> Option<IkeSaId> {
        self.by_init.get(key).copied()
    }

    /// Whether a request with the same cookie, though another one, has made an SA.
    pub(crate) fn cookie_spent(&self, key: &InitKey) -> bool {
        let first = InitKey { port: 0, digest: Vec::new(), ..key.clone() };
        self.by_init.range(Arc::new(first)..).next().is_some_and(|(found, _)| found.one_cookie(key))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &IkeSa> {
        self.sas.values().map(Box::as_ref)
    }

    pub(crate) fn ids(&self) -> Vec<IkeSaId> {
        self.sas.keys().copied().collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.sas.len()
    }

    /// A new SPI of ours: never zero, unused, the shard in its first octet.
    pub(crate) fn fresh_spi(&self, rng: &mut SaRng, shard: u8) -> IkeSpi {
        loop {
            let [_, tail @ ..] = rng.array::<8>();
            let [a, b, c, d, e, f, g] = tail;
            let spi = IkeSpi(u64::from_be_bytes([shard, a, b, c, d, e, f, g]));
            if !spi.is_zero() && !self.by_spi.contains_key(&spi) {
                return spi;
            }
        }
    }
}
