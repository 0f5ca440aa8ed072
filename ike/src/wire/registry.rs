//! The IANA registries of IKEv2. A number that has no name here stays itself as `Unknown`.

macro_rules! registry {
    ($(#[$meta:meta])* $name:ident : $int:ty { $($variant:ident = $value:literal $text:literal,)* }) => {
        $(#[$meta])*
        ///
        /// Two values are equal when their numbers are.
        #[derive(Debug, Clone, Copy)]
        pub enum $name {
            $(
                #[doc = concat!("`", $text, "` (", stringify!($value), ").")]
                $variant,
            )*
            /// A number without a name here.
            Unknown($int),
        }

        impl $name {
            /// Every named value.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The number on the wire.
            #[inline]
            pub const fn value(self) -> $int {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Unknown(value) => value,
                }
            }

            /// The registry's name, or none.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => Some($text),)*
                    Self::Unknown(_) => None,
                }
            }
        }

        impl From<$int> for $name {
            fn from(value: $int) -> Self {
                match value {
                    $($value => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }
        }

        impl From<$name> for $int {
            fn from(value: $name) -> Self {
                value.value()
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.value() == other.value()
            }
        }

        impl Eq for $name {}

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl Ord for $name {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                self.value().cmp(&other.value())
            }
        }

        impl std::hash::Hash for $name {
            fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
                self.value().hash(state);
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => write!(f, "{}", self.value()),
                }
            }
        }
    };
}

registry! {
    /// Exchange types (RFC 7296 3.1).
    ExchangeType: u8 {
        IkeSaInit = 34 "IKE_SA_INIT",
        IkeAuth = 35 "IKE_AUTH",
        CreateChildSa = 36 "CREATE_CHILD_SA",
        Informational = 37 "INFORMATIONAL",
        IkeSessionResume = 38 "IKE_SESSION_RESUME",
        GsaAuth = 39 "GSA_AUTH",
        GsaRegistration = 40 "GSA_REGISTRATION",
        GsaRekey = 41 "GSA_REKEY",
        GsaInbandRekey = 42 "GSA_INBAND_REKEY",
        IkeIntermediate = 43 "IKE_INTERMEDIATE",
        IkeFollowupKe = 44 "IKE_FOLLOWUP_KE",
    }
}

registry! {
    /// Payload types (RFC 7296 3.2).
    PayloadType: u8 {
        None = 0 "none",
        Sa = 33 "SA",
        Ke = 34 "KE",
        IdI = 35 "IDi",
        IdR = 36 "IDr",
        Cert = 37 "CERT",
        CertReq = 38 "CERTREQ",
        Auth = 39 "AUTH",
        Nonce = 40 "Nonce",
        Notify = 41 "N",
        Delete = 42 "D",
        VendorId = 43 "V",
        TsI = 44 "TSi",
        TsR = 45 "TSr",
        Sk = 46 "SK",
        Cp = 47 "CP",
        Eap = 48 "EAP",
        Gspm = 49 "GSPM",
        IdG = 50 "IDg",
        Gsa = 51 "GSA",
        Kd = 52 "KD",
        Skf = 53 "SKF",
        PuzzleSolution = 54 "PS",
    }
}

registry! {
    /// Transform types (RFC 7296 3.3.2, RFC 9370 4).
    TransformType: u8 {
        Encr = 1 "ENCR",
        Prf = 2 "PRF",
        Integ = 3 "INTEG",
        Ke = 4 "KE",
        Esn = 5 "ESN",
        AddKe1 = 6 "ADDKE1",
        AddKe2 = 7 "ADDKE2",
        AddKe3 = 8 "ADDKE3",
        AddKe4 = 9 "ADDKE4",
        AddKe5 = 10 "ADDKE5",
        AddKe6 = 11 "ADDKE6",
        AddKe7 = 12 "ADDKE7",
    }
}

registry! {
    /// Encryption algorithms (transform type 1).
    EncrId: u16 {
        DesIv64 = 1 "DES_IV64",
        Des = 2 "DES",
        TripleDes = 3 "3DES",
        Rc5 = 4 "RC5",
        Idea = 5 "IDEA",
        Cast = 6 "CAST",
        Blowfish = 7 "BLOWFISH",
        TripleIdea = 8 "3IDEA",
        DesIv32 = 9 "DES_IV32",
        Null = 11 "NULL",
        AesCbc = 12 "AES_CBC",
        AesCtr = 13 "AES_CTR",
        AesCcm8 = 14 "AES_CCM_8",
        AesCcm12 = 15 "AES_CCM_12",
        AesCcm16 = 16 "AES_CCM_16",
        AesGcm8 = 18 "AES_GCM_8",
        AesGcm12 = 19 "AES_GCM_12",
        AesGcm16 = 20 "AES_GCM_16",
        NullAuthAesGmac = 21 "NULL_AUTH_AES_GMAC",
        CamelliaCbc = 23 "CAMELLIA_CBC",
        CamelliaCtr = 24 "CAMELLIA_CTR",
        CamelliaCcm8 = 25 "CAMELLIA_CCM_8",
        CamelliaCcm12 = 26 "CAMELLIA_CCM_12",
        CamelliaCcm16 = 27 "CAMELLIA_CCM_16",
        ChaCha20Poly1305 = 28 "CHACHA20_POLY1305",
        AesCcm8Iiv = 29 "AES_CCM_8_IIV",
        AesGcm16Iiv = 30 "AES_GCM_16_IIV",
        ChaCha20Poly1305Iiv = 31 "CHACHA20_POLY1305_IIV",
        KuznyechikMgmKtree = 32 "KUZNYECHIK_MGM_KTREE",
        MagmaMgmKtree = 33 "MAGMA_MGM_KTREE",
        KuznyechikMgmMacKtree = 34 "KUZNYECHIK_MGM_MAC_KTREE",
        MagmaMgmMacKtree = 35 "MAGMA_MGM_MAC_KTREE",
    }
}

registry! {
    /// Pseudo-random functions (transform type 2).
    PrfId: u16 {
        HmacMd5 = 1 "HMAC_MD5",
        HmacSha1 = 2 "HMAC_SHA1",
        HmacTiger = 3 "HMAC_TIGER",
        Aes128Xcbc = 4 "AES128_XCBC",
        HmacSha2_256 = 5 "HMAC_SHA2_256",
        HmacSha2_384 = 6 "HMAC_SHA2_384",
        HmacSha2_512 = 7 "HMAC_SHA2_512",
        Aes128Cmac = 8 "AES128_CMAC",
        HmacStreebog512 = 9 "HMAC_STREEBOG_512",
    }
}

registry! {
    /// Integrity algorithms (transform type 3).
    IntegId: u16 {
        None = 0 "NONE",
        HmacMd5_96 = 1 "HMAC_MD5_96",
        HmacSha1_96 = 2 "HMAC_SHA1_96",
        DesMac = 3 "DES_MAC",
        KpdkMd5 = 4 "KPDK_MD5",
        AesXcbc96 = 5 "AES_XCBC_96",
        HmacMd5_128 = 6 "HMAC_MD5_128",
        HmacSha1_160 = 7 "HMAC_SHA1_160",
        AesCmac96 = 8 "AES_CMAC_96",
        Aes128Gmac = 9 "AES_128_GMAC",
        Aes192Gmac = 10 "AES_192_GMAC",
        Aes256Gmac = 11 "AES_256_GMAC",
        HmacSha2_256_128 = 12 "HMAC_SHA2_256_128",
        HmacSha2_384_192 = 13 "HMAC_SHA2_384_192",
        HmacSha2_512_256 = 14 "HMAC_SHA2_512_256",
    }
}

registry! {
    /// Key exchange methods (transform types 4 and ADDKE1 to ADDKE7).
    KeMethod: u16 {
        None = 0 "NONE",
        Modp768 = 1 "MODP_768",
        Modp1024 = 2 "MODP_1024",
        Modp1536 = 5 "MODP_1536",
        Modp2048 = 14 "MODP_2048",
        Modp3072 = 15 "MODP_3072",
        Modp4096 = 16 "MODP_4096",
        Modp6144 = 17 "MODP_6144",
        Modp8192 = 18 "MODP_8192",
        Ecp256 = 19 "ECP_256",
        Ecp384 = 20 "ECP_384",
        Ecp521 = 21 "ECP_521",
        Modp1024s160 = 22 "MODP_1024_160",
        Modp2048s224 = 23 "MODP_2048_224",
        Modp2048s256 = 24 "MODP_2048_256",
        Ecp192 = 25 "ECP_192",
        Ecp224 = 26 "ECP_224",
        BrainpoolP224r1 = 27 "BRAINPOOL_P224R1",
        BrainpoolP256r1 = 28 "BRAINPOOL_P256R1",
        BrainpoolP384r1 = 29 "BRAINPOOL_P384R1",
        BrainpoolP512r1 = 30 "BRAINPOOL_P512R1",
        Curve25519 = 31 "CURVE25519",
        Curve448 = 32 "CURVE448",
        Gost256 = 33 "GOST3410_2012_256",
        Gost512 = 34 "GOST3410_2012_512",
        MlKem512 = 35 "ML_KEM_512",
        MlKem768 = 36 "ML_KEM_768",
        MlKem1024 = 37 "ML_KEM_1024",
    }
}

registry! {
    /// Extended sequence numbers (transform type 5).
    EsnId: u16 {
        NoEsn = 0 "NO_ESN",
        Esn = 1 "ESN",
    }
}

registry! {
    /// Security protocol identifiers (RFC 7296 3.3.1).
    ProtocolId: u8 {
        None = 0 "none",
        Ike = 1 "IKE",
        Ah = 2 "AH",
        Esp = 3 "ESP",
        FcEspHeader = 4 "FC_ESP_HEADER",
        FcCtAuthentication = 5 "FC_CT_AUTHENTICATION",
    }
}

registry! {
    /// Identification types (RFC 7296 3.5).
    IdType: u8 {
        Ipv4Addr = 1 "IPV4_ADDR",
        Fqdn = 2 "FQDN",
        Rfc822Addr = 3 "RFC822_ADDR",
        Ipv6Addr = 5 "IPV6_ADDR",
        DerAsn1Dn = 9 "DER_ASN1_DN",
        DerAsn1Gn = 10 "DER_ASN1_GN",
        KeyId = 11 "KEY_ID",
        FcName = 12 "FC_NAME",
        Null = 13 "NULL",
    }
}

registry! {
    /// Certificate encodings (RFC 7296 3.6).
    CertEncoding: u8 {
        Pkcs7 = 1 "PKCS7",
        Pgp = 2 "PGP",
        DnsSignedKey = 3 "DNS_SIGNED_KEY",
        X509Signature = 4 "X509_SIGNATURE",
        Kerberos = 6 "KERBEROS",
        Crl = 7 "CRL",
        Arl = 8 "ARL",
        Spki = 9 "SPKI",
        X509Attribute = 10 "X509_ATTRIBUTE",
        RawRsaKey = 11 "RAW_RSA_KEY",
        HashAndUrlX509 = 12 "HASH_AND_URL_X509",
        HashAndUrlBundle = 13 "HASH_AND_URL_BUNDLE",
        OcspContent = 14 "OCSP_CONTENT",
        RawPublicKey = 15 "RAW_PUBLIC_KEY",
    }
}

registry! {
    /// Authentication methods (RFC 7296 3.8).
    AuthMethod: u8 {
        RsaSignature = 1 "RSA_SIGNATURE",
        SharedKeyMic = 2 "SHARED_KEY_MIC",
        DssSignature = 3 "DSS_SIGNATURE",
        EcdsaSha256P256 = 9 "ECDSA_SHA256_P256",
        EcdsaSha384P384 = 10 "ECDSA_SHA384_P384",
        EcdsaSha512P521 = 11 "ECDSA_SHA512_P521",
        GenericSecurePassword = 12 "GENERIC_SECURE_PASSWORD",
        Null = 13 "NULL",
        DigitalSignature = 14 "DIGITAL_SIGNATURE",
    }
}

registry! {
    /// Hash algorithms of digital signatures (RFC 7427 7, RFC 8420 for `IDENTITY`).
    HashAlgorithm: u16 {
        Sha1 = 1 "SHA1",
        Sha2_256 = 2 "SHA2_256",
        Sha2_384 = 3 "SHA2_384",
        Sha2_512 = 4 "SHA2_512",
        Identity = 5 "IDENTITY",
        Streebog256 = 6 "STREEBOG_256",
        Streebog512 = 7 "STREEBOG_512",
    }
}

registry! {
    /// Traffic selector types (RFC 7296 3.13.1).
    TsType: u8 {
        Ipv4AddrRange = 7 "TS_IPV4_ADDR_RANGE",
        Ipv6AddrRange = 8 "TS_IPV6_ADDR_RANGE",
        FcAddrRange = 9 "TS_FC_ADDR_RANGE",
        SecLabel = 10 "TS_SECLABEL",
    }
}

registry! {
    /// Configuration payload types (RFC 7296 3.15).
    CfgType: u8 {
        Request = 1 "CFG_REQUEST",
        Reply = 2 "CFG_REPLY",
        Set = 3 "CFG_SET",
        Ack = 4 "CFG_ACK",
    }
}

registry! {
    /// Configuration attribute types (RFC 7296 3.15.1), 15 bits.
    CfgAttrType: u16 {
        InternalIp4Address = 1 "INTERNAL_IP4_ADDRESS",
        InternalIp4Netmask = 2 "INTERNAL_IP4_NETMASK",
        InternalIp4Dns = 3 "INTERNAL_IP4_DNS",
        InternalIp4Nbns = 4 "INTERNAL_IP4_NBNS",
        InternalIp4Dhcp = 6 "INTERNAL_IP4_DHCP",
        ApplicationVersion = 7 "APPLICATION_VERSION",
        InternalIp6Address = 8 "INTERNAL_IP6_ADDRESS",
        InternalIp6Dns = 10 "INTERNAL_IP6_DNS",
        InternalIp6Dhcp = 12 "INTERNAL_IP6_DHCP",
        InternalIp4Subnet = 13 "INTERNAL_IP4_SUBNET",
        SupportedAttributes = 14 "SUPPORTED_ATTRIBUTES",
        InternalIp6Subnet = 15 "INTERNAL_IP6_SUBNET",
        Mip6HomePrefix = 16 "MIP6_HOME_PREFIX",
        InternalIp6Link = 17 "INTERNAL_IP6_LINK",
        InternalIp6Prefix = 18 "INTERNAL_IP6_PREFIX",
        HomeAgentAddress = 19 "HOME_AGENT_ADDRESS",
        PCscfIp4Address = 20 "P_CSCF_IP4_ADDRESS",
        PCscfIp6Address = 21 "P_CSCF_IP6_ADDRESS",
        FttKat = 22 "FTT_KAT",
        ExternalSourceIp4NatInfo = 23 "EXTERNAL_SOURCE_IP4_NAT_INFO",
        TimeoutPeriodForLivenessCheck = 24 "TIMEOUT_PERIOD_FOR_LIVENESS_CHECK",
        InternalDnsDomain = 25 "INTERNAL_DNS_DOMAIN",
        InternalDnssecTa = 26 "INTERNAL_DNSSEC_TA",
        EncDnsIp4 = 27 "ENCDNS_IP4",
        EncDnsIp6 = 28 "ENCDNS_IP6",
        EncDnsDigestInfo = 29 "ENCDNS_DIGEST_INFO",
    }
}

registry! {
    /// EAP codes (RFC 3748 4, RFC 6696 for the last two).
    EapCode: u8 {
        Request = 1 "Request",
        Response = 2 "Response",
        Success = 3 "Success",
        Failure = 4 "Failure",
        Initiate = 5 "Initiate",
        Finish = 6 "Finish",
    }
}

registry! {
    /// EAP method types (RFC 3748 5).
    EapType: u8 {
        Identity = 1 "Identity",
        Notification = 2 "Notification",
        Nak = 3 "Nak",
        Md5Challenge = 4 "MD5-Challenge",
        Otp = 5 "OTP",
        Gtc = 6 "GTC",
        Tls = 13 "TLS",
        Sim = 18 "SIM",
        Ttls = 21 "TTLS",
        Aka = 23 "AKA",
        Peap = 25 "PEAP",
        MsChapV2 = 26 "MSCHAPV2",
        Fast = 43 "FAST",
        Psk = 47 "PSK",
        AkaPrime = 50 "AKA-PRIME",
        Pwd = 52 "PWD",
        Teap = 55 "TEAP",
        Expanded = 254 "Expanded",
    }
}

registry! {
    /// Notify message types (RFC 7296 3.10.1 and extensions). Below 16384 they are errors.
    NotifyType: u16 {
        UnsupportedCriticalPayload = 1 "UNSUPPORTED_CRITICAL_PAYLOAD",
        InvalidIkeSpi = 4 "INVALID_IKE_SPI",
        InvalidMajorVersion = 5 "INVALID_MAJOR_VERSION",
        InvalidSyntax = 7 "INVALID_SYNTAX",
        InvalidMessageId = 9 "INVALID_MESSAGE_ID",
        InvalidSpi = 11 "INVALID_SPI",
        NoProposalChosen = 14 "NO_PROPOSAL_CHOSEN",
        InvalidKePayload = 17 "INVALID_KE_PAYLOAD",
        AuthenticationFailed = 24 "AUTHENTICATION_FAILED",
        SinglePairRequired = 34 "SINGLE_PAIR_REQUIRED",
        NoAdditionalSas = 35 "NO_ADDITIONAL_SAS",
        InternalAddressFailure = 36 "INTERNAL_ADDRESS_FAILURE",
        FailedCpRequired = 37 "FAILED_CP_REQUIRED",
        TsUnacceptable = 38 "TS_UNACCEPTABLE",
        InvalidSelectors = 39 "INVALID_SELECTORS",
        UnacceptableAddresses = 40 "UNACCEPTABLE_ADDRESSES",
        UnexpectedNatDetected = 41 "UNEXPECTED_NAT_DETECTED",
        UseAssignedHoA = 42 "USE_ASSIGNED_HoA",
        TemporaryFailure = 43 "TEMPORARY_FAILURE",
        ChildSaNotFound = 44 "CHILD_SA_NOT_FOUND",
        InvalidGroupId = 45 "INVALID_GROUP_ID",
        AuthorizationFailed = 46 "AUTHORIZATION_FAILED",
        StateNotFound = 47 "STATE_NOT_FOUND",
        TsMaxQueue = 48 "TS_MAX_QUEUE",
        InitialContact = 16384 "INITIAL_CONTACT",
        SetWindowSize = 16385 "SET_WINDOW_SIZE",
        AdditionalTsPossible = 16386 "ADDITIONAL_TS_POSSIBLE",
        IpcompSupported = 16387 "IPCOMP_SUPPORTED",
        NatDetectionSourceIp = 16388 "NAT_DETECTION_SOURCE_IP",
        NatDetectionDestinationIp = 16389 "NAT_DETECTION_DESTINATION_IP",
        Cookie = 16390 "COOKIE",
        UseTransportMode = 16391 "USE_TRANSPORT_MODE",
        HttpCertLookupSupported = 16392 "HTTP_CERT_LOOKUP_SUPPORTED",
        RekeySa = 16393 "REKEY_SA",
        EspTfcPaddingNotSupported = 16394 "ESP_TFC_PADDING_NOT_SUPPORTED",
        NonFirstFragmentsAlso = 16395 "NON_FIRST_FRAGMENTS_ALSO",
        MobikeSupported = 16396 "MOBIKE_SUPPORTED",
        AdditionalIp4Address = 16397 "ADDITIONAL_IP4_ADDRESS",
        AdditionalIp6Address = 16398 "ADDITIONAL_IP6_ADDRESS",
        NoAdditionalAddresses = 16399 "NO_ADDITIONAL_ADDRESSES",
        UpdateSaAddresses = 16400 "UPDATE_SA_ADDRESSES",
        Cookie2 = 16401 "COOKIE2",
        NoNatsAllowed = 16402 "NO_NATS_ALLOWED",
        AuthLifetime = 16403 "AUTH_LIFETIME",
        MultipleAuthSupported = 16404 "MULTIPLE_AUTH_SUPPORTED",
        AnotherAuthFollows = 16405 "ANOTHER_AUTH_FOLLOWS",
        RedirectSupported = 16406 "REDIRECT_SUPPORTED",
        Redirect = 16407 "REDIRECT",
        RedirectedFrom = 16408 "REDIRECTED_FROM",
        TicketLtOpaque = 16409 "TICKET_LT_OPAQUE",
        TicketRequest = 16410 "TICKET_REQUEST",
        TicketAck = 16411 "TICKET_ACK",
        TicketNack = 16412 "TICKET_NACK",
        TicketOpaque = 16413 "TICKET_OPAQUE",
        LinkId = 16414 "LINK_ID",
        UseWespMode = 16415 "USE_WESP_MODE",
        RohcSupported = 16416 "ROHC_SUPPORTED",
        EapOnlyAuthentication = 16417 "EAP_ONLY_AUTHENTICATION",
        ChildlessIkev2Supported = 16418 "CHILDLESS_IKEV2_SUPPORTED",
        QuickCrashDetection = 16419 "QUICK_CRASH_DETECTION",
        MessageIdSyncSupported = 16420 "IKEV2_MESSAGE_ID_SYNC_SUPPORTED",
        ReplayCounterSyncSupported = 16421 "IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED",
        MessageIdSync = 16422 "IKEV2_MESSAGE_ID_SYNC",
        ReplayCounterSync = 16423 "IPSEC_REPLAY_COUNTER_SYNC",
        SecurePasswordMethods = 16424 "SECURE_PASSWORD_METHODS",
        PskPersist = 16425 "PSK_PERSIST",
        PskConfirm = 16426 "PSK_CONFIRM",
        ErxSupported = 16427 "ERX_SUPPORTED",
        IfomCapability = 16428 "IFOM_CAPABILITY",
        GroupSender = 16429 "GROUP_SENDER",
        FragmentationSupported = 16430 "IKEV2_FRAGMENTATION_SUPPORTED",
        SignatureHashAlgorithms = 16431 "SIGNATURE_HASH_ALGORITHMS",
        CloneIkeSaSupported = 16432 "CLONE_IKE_SA_SUPPORTED",
        CloneIkeSa = 16433 "CLONE_IKE_SA",
        Puzzle = 16434 "PUZZLE",
        UsePpk = 16435 "USE_PPK",
        PpkIdentity = 16436 "PPK_IDENTITY",
        NoPpkAuth = 16437 "NO_PPK_AUTH",
        IntermediateExchangeSupported = 16438 "INTERMEDIATE_EXCHANGE_SUPPORTED",
        Ip4Allowed = 16439 "IP4_ALLOWED",
        Ip6Allowed = 16440 "IP6_ALLOWED",
        AdditionalKeyExchange = 16441 "ADDITIONAL_KEY_EXCHANGE",
        UseAggfrag = 16442 "USE_AGGFRAG",
        SupportedAuthMethods = 16443 "SUPPORTED_AUTH_METHODS",
        SaResourceInfo = 16444 "SA_RESOURCE_INFO",
        UsePpkInt = 16445 "USE_PPK_INT",
        PpkIdentityKey = 16446 "PPK_IDENTITY_KEY",
    }
}

impl PayloadType {
    /// Whether this codec understands the payload, so that its critical bit is ignored
    /// (RFC 7296 2.5).
    pub fn is_supported(self) -> bool {
        matches!(self.value(), 33..=48 | 53)
    }

    /// Whether a message may hold several of them.
    pub(super) fn may_repeat(self) -> bool {
        matches!(self, Self::Cert | Self::CertReq | Self::Notify | Self::Delete | Self::VendorId)
            || !self.is_supported()
    }
}

impl NotifyType {
    /// Whether it reports an error (RFC 7296 3.10.1: types 0 to 16383).
    pub fn is_error(self) -> bool {
        self.value() < 16384
    }
}

impl EncrId {
    /// Whether it protects integrity too (RFC 5282, RFC 7634), so that no INTEG transform goes
    /// with it.
    pub fn is_aead(self) -> bool {
        matches!(
            self,
            Self::AesCcm8
                | Self::AesCcm12
                | Self::AesCcm16
                | Self::AesGcm8
                | Self::AesGcm12
                | Self::AesGcm16
                | Self::NullAuthAesGmac
                | Self::CamelliaCcm8
                | Self::CamelliaCcm12
                | Self::CamelliaCcm16
                | Self::ChaCha20Poly1305
                | Self::AesCcm8Iiv
                | Self::AesGcm16Iiv
                | Self::ChaCha20Poly1305Iiv
                | Self::KuznyechikMgmKtree
                | Self::MagmaMgmKtree
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_registry() {
        assert_eq!(ExchangeType::from(44), ExchangeType::IkeFollowupKe);
        assert_eq!(PayloadType::Skf.value(), 53);
        assert_eq!(KeMethod::MlKem768.value(), 36);
        assert_eq!(HashAlgorithm::Identity.value(), 5);
        assert_eq!(NotifyType::from(16430).to_string(), "IKEV2_FRAGMENTATION_SUPPORTED");
    }

    #[test]
    fn unnamed_numbers_stay_themselves() {
        assert_eq!(NotifyType::from(40_000).value(), 40_000);
        assert_eq!(NotifyType::from(40_000).name(), None);
        assert_eq!(NotifyType::from(40_000).to_string(), "40000");
    }

    #[test]
    fn an_unknown_that_has_a_name_equals_it() {
        assert_eq!(PayloadType::Unknown(33), PayloadType::Sa);
        assert_ne!(PayloadType::Unknown(200), PayloadType::Sa);
    }

    #[test]
    fn every_named_value_survives_its_number() {
        for kind in NotifyType::ALL {
            assert_eq!(NotifyType::from(kind.value()).name(), kind.name());
        }
        for kind in PayloadType::ALL {
            assert_eq!(PayloadType::from(kind.value()).name(), kind.name());
        }
    }

    #[test]
    fn errors_end_where_status_types_begin() {
        assert!(NotifyType::from(16_383).is_error());
        assert!(!NotifyType::InitialContact.is_error());
    }
}
