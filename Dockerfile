# The program alone: no distribution, no shell, nothing to patch but itself.
# scripts/image.sh makes the directory this is built in, for one architecture:
#
#   aufs-csi    the static program
#   LICENSE     ours
#   share/      licences of what is compiled in, and an SBOM
#
# It has no USER: mounting needs root, and the chart drops what it can.
FROM scratch
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="aufs-csi" \
      org.opencontainers.image.description="A Kubernetes CSI node plugin for layered ephemeral volumes on AUFS or overlayfs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/aufs-csi/aufs-csi" \
      org.opencontainers.image.documentation="https://github.com/aufs-csi/aufs-csi#readme" \
      org.opencontainers.image.vendor="aufs-csi" \
      org.opencontainers.image.base.name="scratch" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
COPY LICENSE /LICENSE
COPY share /usr/share/aufs-csi
COPY aufs-csi /aufs-csi
ENTRYPOINT ["/aufs-csi"]
CMD ["--help"]
