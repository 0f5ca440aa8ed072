//! An IKE SA at an exchange boundary as plain, versioned data.
