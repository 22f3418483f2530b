#!/bin/sh
# Makes the Secrets that the installation needs, once, and writes them to standard output:
#
#   manifests/secrets.sh --redis-url redis://user:password@host:6379/0 | kubectl apply -f -
#   manifests/secrets.sh --redis | kubectl apply -f -      # for components/redis
#   manifests/secrets.sh | kubectl apply -f -              # certificates alone: renews them
#
# --state-redis-url URL adds where tenants keep Session state; controller and agents get it.
# --no-certificates leaves them out, for cert-manager. --days N is how long they live (365).
# --system-namespace NAME, --agent-namespace NAME: where the chart was told to install.
# The authority's key is thrown away with the work folder: nothing can be signed by it again, and
# a renewal is a new authority. --redis makes up a password at each run, which running processes
# do not have: its Secret is immutable, so that a second run cannot replace it by mistake.
set -eu
umask 077

days=365 redis_url='' state_redis_url='' password='' certificates=yes
system=gpusession-system agents=gpusession-agents
usage() { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --redis) password=$(openssl rand -hex 24); shift ;;
    --no-certificates) certificates=''; shift ;;
    --redis-url) redis_url=${2:?}; shift 2 ;;
    --state-redis-url) state_redis_url=${2:?}; shift 2 ;;
    --days) days=${2:?}; shift 2 ;;
    --system-namespace) system=${2:?}; shift 2 ;;
    --agent-namespace) agents=${2:?}; shift 2 ;;
    *) usage ;;
  esac
done
if [ -n "$password" ]; then
  if [ -n "$redis_url" ]; then usage; fi # two servers
  redis_url="redis://:$password@gpusession-redis.$system.svc:6379/0"
fi
# kubectl apply would take away the other key of that Secret.
if [ -n "$state_redis_url" ] && [ -z "$redis_url" ]; then usage; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/openssl.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
[authority]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[agent]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:gpusession-agent.$agents.svc
END
for who in ca tls; do
  openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$work/$who.key" \
    2>/dev/null || openssl ecparam -name prime256v1 -genkey -noout -out "$work/$who.key"
done
openssl req -new -x509 -config "$work/openssl.cnf" -extensions authority -days "$days" \
  -subj '/CN=gpusession authority' -key "$work/ca.key" -out "$work/ca.crt"
openssl req -new -config "$work/openssl.cnf" -subj '/CN=gpusession-agent' \
  -key "$work/tls.key" -out "$work/tls.csr"
openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" \
  -set_serial "0x$(openssl rand -hex 16)" -days "$days" -extfile "$work/openssl.cnf" \
  -extensions agent -out "$work/tls.crt" 2>/dev/null

encoded() { base64 | tr -d '\n'; }
secret() { # namespace, name, type; then name value ...
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  namespace: %s\n' "$2" "$1"
  printf 'type: %s\ndata:\n' "$3"
  shift 3
  while [ $# -gt 0 ]; do
    if [ -n "$2" ]; then printf '  %s: %s\n' "$1" "$(printf %s "$2" | encoded)"; fi
    shift 2
  done
}
if [ -n "$certificates" ]; then
  secret "$agents" gpusession-agent-tls kubernetes.io/tls \
    tls.crt "$(cat "$work/tls.crt")" tls.key "$(cat "$work/tls.key")"
  secret "$system" gpusession-agent-ca Opaque ca.crt "$(cat "$work/ca.crt")"
fi
if [ -n "$redis_url" ]; then
  secret "$system" gpusession-redis Opaque redis-url "$redis_url" \
    state-redis-url "$state_redis_url" password "$password"
  if [ -n "$password" ]; then echo 'immutable: true'; fi
fi
if [ -n "$state_redis_url" ]; then
  secret "$agents" gpusession-redis Opaque state-redis-url "$state_redis_url"
fi
