//! Listings by pages: nobody has to take a hundred thousand leases at once, and a reader who comes
//! back for the next page misses nothing that was there all the time.

use std::collections::BTreeSet;

use crate::authority::Authority;
use crate::bar::Bar;
use crate::enrol::token::Token;
use crate::error::Error;
use crate::issue::CertRecord;
use crate::lease::Lease;
use crate::record::{self, key};
use crate::store::{self, Entry};

/// Entries read from the store at once.
const BATCH: usize = 256;

/// A part of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the next one begins: to be given as `after`. `None`: there is no more.
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The page of what comes after a name, from all that is in the order of its names.
    fn of(all: impl IntoIterator<Item = (String, T)>, after: Option<&str>, limit: usize) -> Self {
        let mut page = Self { items: Vec::new(), next: None };
        let mut last = None;
        for (name, item) in all {
            if after.is_some_and(|after| name.as_str() <= after) {
                continue;
            }
            if page.items.len() == limit {
                page.next = last;
                return page;
            }
            page.items.push(item);
            last = Some(name);
        }
        page
    }
}

impl Authority {
    /// Leases in the order of their ids: the live ones, or all that are kept.
    ///
    /// # Errors
    /// When the store fails.
    pub fn lease_page(
        &self,
        include_ended: bool,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Lease>, Error> {
        if include_ended {
            return self.entries(key::LEASE, after, limit, |key, entry| {
                Ok(Some(record::decode::<Lease>(key, entry)?.value))
            });
        }
        // Deadlines move between two pages, ids do not.
        let due = store::scan(self.store.as_ref(), key::DUE)?;
        let ids: BTreeSet<&str> =
            due.iter().filter_map(|(due, _)| Some(key::parse_due(due)?.1)).collect();
        let mut page = Page { items: Vec::new(), next: None };
        for id in ids {
            if after.is_some_and(|after| id <= after) {
                continue;
            }
            if page.items.len() == limit {
                page.next = page.items.last().map(|lease: &Lease| lease.id.clone());
                break;
            }
            page.items.extend(self.lease(id)?.filter(|lease| lease.state.is_live()));
        }
        Ok(page)
    }

    /// Tokens in the order of their ids.
    ///
    /// # Errors
    /// When the store fails.
    pub fn token_page(&self, after: Option<&str>, limit: usize) -> Result<Page<Token>, Error> {
        self.entries(key::TOKEN, after, limit, |key, entry| {
            Ok(Some(record::decode::<Token>(key, entry)?.value))
        })
    }

    /// Certificates that are no CA's and that `keep` wants, in the order of issuer and serial.
    ///
    /// # Errors
    /// When the store fails.
    pub fn certificate_page(
        &self,
        keep: impl Fn(&CertRecord) -> bool,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<CertRecord>, Error> {
        self.entries(key::CERT, after, limit, |key, entry| {
            let certificate = record::decode::<CertRecord>(key, entry)?.value;
            Ok(Some(certificate).filter(|certificate| !certificate.ca && keep(certificate)))
        })
    }

    /// Bars in the order of their ids.
    ///
    /// # Errors
    /// When the store fails.
    pub fn bar_page(&self, after: Option<&str>, limit: usize) -> Result<Page<Bar>, Error> {
        let mut bars: Vec<(String, Bar)> =
            self.bars()?.into_iter().map(|bar| (bar.what.id(), bar)).collect();
        bars.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Page::of(bars, after, limit))
    }

    fn entries<T>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        read: impl Fn(&str, &Entry) -> Result<Option<T>, Error>,
    ) -> Result<Page<T>, Error> {
        let mut cursor = after.map(|after| format!("{prefix}{after}"));
        let mut page = Page { items: Vec::new(), next: None };
        let mut last = None;
        loop {
            let found = self.store.range(prefix, cursor.as_deref(), BATCH)?;
            for (key, entry) in &found {
                let Some(item) = read(key, entry)? else { continue };
                if page.items.len() == limit {
                    page.next = last;
                    return Ok(page);
                }
                page.items.push(item);
                last = key.strip_prefix(prefix).map(str::to_owned);
            }
            match found.into_iter().next_back() {
                Some((key, _)) => cursor = Some(key),
                None => return Ok(page),
            }
        }
    }
}
