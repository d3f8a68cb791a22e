//! Image store: registry, OCI layout and docker-archive sources, verified blobs, unpacked layers.
