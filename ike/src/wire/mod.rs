//! The IKEv2 wire format: RFC 7296 section 3 and its extensions, bytes in and values out.
//!
//! Every input is hostile until its integrity check has passed. The codec therefore never panics,
//! checks cheap things first, and allocates at most a small multiple of the datagram it was given;
//! the limits are constants of the module that enforces them. It knows no policy: what a peer may
//! offer, and which payload an exchange must hold, is decided by its callers.
//!
//! What is parsed and encoded again is canonical: reserved bits are zero, and encoding is stable
//! from then on. Octets that a signature covers (RFC 7296 2.15) must be taken from the datagram
//! itself, or from [`IdPayload::body`], which keeps the reserved octets of the peer.
//!
//! ```
//! use ike::wire::{ExchangeType, Flags, Header, IkeSpi, Message, Nonce, Payload, Payloads};
//!
//! let header = Header::new(IkeSpi(1), IkeSpi(0), ExchangeType::IkeSaInit, Flags::REQUEST, 0);
//! let mut payloads = Payloads::new();
//! payloads.push(Payload::Nonce(Nonce::new(vec![7; 32])?));
//! let bytes = Message { header, payloads }.encode()?;
//! assert_eq!(Message::parse(&bytes)?.payloads.nonce().map(|n| n.as_bytes().len()), Some(32));
//! # Ok::<(), ike::wire::WireError>(())
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod auth;
mod cert;
mod chain;
mod cp;
mod delete;
mod eap;
mod encrypted;
mod error;
mod fragment;
mod header;
mod id;
mod ke;
mod nonce;
mod notify;
mod pretty;
mod reader;
mod registry;
mod sa;
mod ts;
mod vendor;
mod writer;

pub use auth::{Authentication, SignatureData};
pub use cert::{CertRequest, Certificate, HashAndUrl, MAX_CERT_LEN};
pub use chain::{Item, MAX_PAYLOADS, Message, Payload, Payloads, RawChain, RawPayload};
pub use cp::{CfgAttr, Configuration, MAX_CFG_ATTRS};
pub use delete::{Delete, MAX_DELETE_SPIS};
pub use eap::Eap;
pub use encrypted::{
    CipherError, EncryptedFragment, EncryptedPayload, Frame, Opened, Plaintext, SkCipher,
    int_auth_octets, open, seal, seal_plaintext,
};
pub use error::{ErrorNotify, Field, Part, WireError};
pub use fragment::{FragmentLimits, Progress, Reassembler, seal_fragments};
pub use header::{ChildSpi, Flags, HEADER_LEN, Header, IkeSpi, Version};
pub use id::{IdPayload, Identification};
pub use ke::KeyExchange;
pub use nonce::Nonce;
pub use notify::{
    AdditionalAddresses, MessageIdSync, Notify, RedirectGateway, nat_detection_input,
};
pub use pretty::{Detailed, OneLine};
pub use reader::Reader;
pub use registry::{
    AuthMethod, CertEncoding, CfgAttrType, CfgType, EapCode, EapType, EncrId, EsnId, ExchangeType,
    HashAlgorithm, IdType, IntegId, KeMethod, NotifyType, PayloadType, PrfId, ProtocolId,
    TransformType, TsType,
};
pub use sa::{
    Attribute, MAX_ATTRIBUTES, MAX_PROPOSALS, MAX_TRANSFORMS, Proposal, SecurityAssociation,
    Transform, TransformId,
};
pub use ts::{MAX_SELECTORS, TrafficSelector, TrafficSelectors, UnknownSelector};
pub use vendor::VendorId;
pub use writer::Writer;
