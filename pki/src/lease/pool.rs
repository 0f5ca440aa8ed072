//! Address pools.

use crate::error::Error;
use crate::profile::PoolConfig;

#[derive(Debug)]
pub(crate) struct AddressBook;

pub(crate) fn check(_name: &str, _pool: &PoolConfig) -> Result<(), Error> {
    Ok(())
}
