package microsandbox

import (
	"net"
	"strconv"
	"strings"
)

const (
	ipv4Pool = "172.16.0.0/12"
	ipv6Pool = "fd42:6d73:62::/48"
)

// PortProtocol is the protocol of a published port.
type PortProtocol string

// Protocols of published ports.
const (
	TCP PortProtocol = "tcp"
	UDP PortProtocol = "udp"
)

// PortBinding is a published port. Bind is 127.0.0.1 if it is empty, Protocol is TCP.
type PortBinding struct {
	HostPort, GuestPort uint16
	Bind                string
	Protocol            PortProtocol
}

func (p PortBinding) json() (object, error) {
	if p.Bind == "" {
		p.Bind = "127.0.0.1"
	}
	if p.Protocol == "" {
		p.Protocol = TCP
	}
	if p.HostPort == 0 || p.GuestPort == 0 {
		return nil, invalid("a port must be from 1 to 65535")
	}
	if net.ParseIP(p.Bind) == nil {
		return nil, invalid("%q is not an address", p.Bind)
	}
	return object{
		"host_port": p.HostPort, "guest_port": p.GuestPort, "host_bind": p.Bind,
		"protocol": p.Protocol,
	}, nil
}

// PolicyRule is a rule: an action for connections to a destination. The first that matches decides.
type PolicyRule struct {
	// Action is allow or deny.
	Action string
	// Direction is egress, ingress or any; egress if it is empty.
	Direction string
	// Destination is "*", "domain=NAME", "suffix=NAME", a group, ".SUFFIX", a range, an address or a
	// name; "*" if it is empty.
	Destination string
	// Protocol and Protocols are tcp, udp, icmpv4 and icmpv6; every one if they are empty.
	Protocol  string
	Protocols []string
	// Port and Ports are numbers and ranges such as 8000-9000; every port if they are empty.
	Port  string
	Ports []string
}

var groups = map[string]bool{
	"public": true, "loopback": true, "private": true, "link-local": true, "metadata": true,
	"multicast": true, "host": true,
}

func destination(text string) (any, error) {
	switch {
	case text == "" || text == "*":
		return "any", nil
	case strings.HasPrefix(text, "domain="):
		return object{"domain": text[len("domain="):]}, nil
	case strings.HasPrefix(text, "suffix="):
		return object{"domain_suffix": strings.TrimLeft(text[len("suffix="):], ".")}, nil
	case groups[text]:
		return object{"group": strings.ReplaceAll(text, "-", "_")}, nil
	case strings.HasPrefix(text, "."):
		return object{"domain_suffix": strings.TrimLeft(text, ".")}, nil
	case strings.Contains(text, "/"):
		_, found, err := net.ParseCIDR(text)
		if err != nil {
			return nil, fail(ErrNetworkPolicy, "%q is not a destination", text)
		}
		return object{"cidr": found.String()}, nil
	}
	if found := net.ParseIP(text); found != nil {
		bits := 128
		if found.To4() != nil {
			bits = 32
		}
		return object{"cidr": found.String() + "/" + strconv.Itoa(bits)}, nil
	}
	return object{"domain": text}, nil
}

func portRanges(texts []string) ([]object, error) {
	ranges := []object{}
	for _, text := range texts {
		for _, one := range strings.Split(text, ",") {
			first, last, isRange := strings.Cut(strings.TrimSpace(one), "-")
			if !isRange {
				last = first
			}
			start, startErr := strconv.ParseUint(first, 10, 16)
			end, endErr := strconv.ParseUint(last, 10, 16)
			if startErr != nil || endErr != nil || start > end {
				return nil, fail(ErrNetworkPolicy, "%q is not a port or a range of ports", text)
			}
			ranges = append(ranges, object{"start": start, "end": end})
		}
	}
	return ranges, nil
}

func oneOf(name, value, fallback string, words ...string) (string, error) {
	if value == "" {
		return fallback, nil
	}
	for _, word := range words {
		if word == value {
			return value, nil
		}
	}
	return "", fail(ErrNetworkPolicy, "%s must be one of %s, not %q",
		name, strings.Join(words, ", "), value)
}

func (r PolicyRule) json() (object, error) {
	action, err := oneOf("action", r.Action, "", "allow", "deny")
	if err == nil && action == "" {
		err = fail(ErrNetworkPolicy, "a rule needs an action")
	}
	if err != nil {
		return nil, err
	}
	direction, err := oneOf("direction", r.Direction, "egress", "egress", "ingress", "any")
	if err != nil {
		return nil, err
	}
	to, err := destination(r.Destination)
	if err != nil {
		return nil, err
	}
	protocols, ports := append([]string{}, r.Protocols...), r.Ports
	if r.Protocol != "" {
		protocols = append(protocols, r.Protocol)
	}
	for _, protocol := range protocols {
		if _, err := oneOf("protocol", protocol, "", "tcp", "udp", "icmpv4", "icmpv6"); err != nil {
			return nil, err
		}
	}
	if r.Port != "" {
		ports = append(append([]string{}, ports...), r.Port)
	}
	ranges, err := portRanges(ports)
	if err != nil {
		return nil, err
	}
	return object{
		"action": action, "direction": direction, "destination": to, "protocols": protocols,
		"ports": ranges,
	}, nil
}

// DNSConfig is the DNS of a sandbox. Without name servers, those of the host are used.
type DNSConfig struct {
	NoRebindProtection bool
	Nameservers        []string
	// QueryTimeoutMs is 5000 if it is 0.
	QueryTimeoutMs uint32
}

// TLSConfig is TLS interception: the guest trusts a certificate of the sandbox.
type TLSConfig struct {
	Bypass           []string
	VerifyUpstream   *bool
	InterceptedPorts []uint16
	BlockQUIC        bool
	CACert, CAKey    string
}

// NetworkConfig is the network of a sandbox. Without a policy, the guest reaches the public Internet.
type NetworkConfig struct {
	// Policy is none, public-only, non-local or allow-all. Rules and defaults replace it.
	Policy                          string
	Rules                           []PolicyRule
	DefaultEgress, DefaultIngress   string
	DenyDomains, DenyDomainSuffixes []string
	DNS                             *DNSConfig
	// DNSRebindProtection sets whether DNS answers with private addresses are refused.
	DNSRebindProtection *bool
	TLS                 *TLSConfig
	Ports               map[uint16]uint16
	PortBindings        []PortBinding
	IPv4Pool, IPv6Pool  string
	MaxConnections      uint32
	OnSecretViolation   string
	TrustHostCAs        bool
}

// NetworkPolicy makes networks of a policy.
var NetworkPolicy networkPolicies

type networkPolicies struct{}

// None returns a network without connections.
func (networkPolicies) None() *NetworkConfig { return &NetworkConfig{Policy: "none"} }

// PublicOnly returns a network with the public Internet and DNS. It is the default.
func (networkPolicies) PublicOnly() *NetworkConfig { return &NetworkConfig{Policy: "public-only"} }

// NonLocal returns the public network with private networks.
func (networkPolicies) NonLocal() *NetworkConfig { return &NetworkConfig{Policy: "non-local"} }

// AllowAll returns a network without limits.
func (networkPolicies) AllowAll() *NetworkConfig { return &NetworkConfig{Policy: "allow-all"} }

// policy returns the rules and defaults of the policy's name.
func (n *NetworkConfig) policy() (rules []PolicyRule, egress, ingress string, err error) {
	host := PolicyRule{Action: "allow", Destination: "host", Port: "53"}
	host.Protocols = []string{"udp"}
	overTCP := host
	overTCP.Protocols = []string{"tcp"}
	public := []PolicyRule{host, overTCP, {Action: "allow", Destination: "public"}}
	egress, ingress = "deny", "allow"
	switch strings.ReplaceAll(n.Policy, "_", "-") {
	case "":
		if n.Rules == nil && n.DefaultEgress == "" && n.DefaultIngress == "" {
			rules = public
		}
	case "none":
		ingress = "deny"
	case "public-only":
		rules = public
	case "non-local":
		rules = append(public, PolicyRule{Action: "allow", Destination: "private"})
	case "allow-all":
		egress = "allow"
	default:
		return nil, "", "", fail(ErrNetworkPolicy, "there is no policy %q", n.Policy)
	}
	rules = append(append([]PolicyRule{}, rules...), n.Rules...)
	if egress, err = oneOf("default egress", n.DefaultEgress, egress, "allow", "deny"); err != nil {
		return nil, "", "", err
	}
	ingress, err = oneOf("default ingress", n.DefaultIngress, ingress, "allow", "deny")
	return rules, egress, ingress, err
}

func (n *NetworkConfig) json() (object, error) {
	rules, egress, ingress, err := n.policy()
	if err != nil {
		return nil, err
	}
	var denied []PolicyRule
	for _, name := range n.DenyDomains {
		denied = append(denied, PolicyRule{Action: "deny", Destination: "domain=" + name})
	}
	for _, suffix := range n.DenyDomainSuffixes {
		denied = append(denied, PolicyRule{Action: "deny", Destination: "suffix=" + suffix})
	}
	listed := []object{}
	for _, rule := range append(denied, rules...) {
		json, err := rule.json()
		if err != nil {
			return nil, err
		}
		listed = append(listed, json)
	}
	bindings := n.PortBindings
	for host, guest := range n.Ports {
		bindings = append(bindings, PortBinding{HostPort: host, GuestPort: guest})
	}
	ports := []object{}
	for _, binding := range bindings {
		json, err := binding.json()
		if err != nil {
			return nil, err
		}
		ports = append(ports, json)
	}
	pools := object{"ipv4_pool": ipv4Pool, "ipv6_pool": ipv6Pool}
	if n.IPv4Pool != "" {
		pools["ipv4_pool"] = n.IPv4Pool
	}
	if n.IPv6Pool != "" {
		pools["ipv6_pool"] = n.IPv6Pool
	}
	fields := object{
		"enabled": true, "ports": ports, "interface": pools,
		"policy": object{"default_egress": egress, "default_ingress": ingress, "rules": listed},
	}
	n.more(fields)
	return fields, nil
}

func (n *NetworkConfig) more(fields object) {
	if n.DNS != nil || n.DNSRebindProtection != nil {
		dns := n.DNS
		if dns == nil {
			dns = &DNSConfig{}
		}
		protection := !dns.NoRebindProtection
		if n.DNSRebindProtection != nil {
			protection = *n.DNSRebindProtection
		}
		json := object{
			"rebind_protection": protection,
			"nameservers":       append([]string{}, dns.Nameservers...),
		}
		if dns.QueryTimeoutMs > 0 {
			json["query_timeout_ms"] = dns.QueryTimeoutMs
		}
		fields["dns"] = json
	}
	if n.TLS != nil {
		ports := n.TLS.InterceptedPorts
		if ports == nil {
			ports = []uint16{443}
		}
		verify := n.TLS.VerifyUpstream == nil || *n.TLS.VerifyUpstream
		fields["tls"] = object{
			"enabled": true, "bypass": append([]string{}, n.TLS.Bypass...),
			"verify_upstream": verify, "intercepted_ports": ports,
			"block_quic_on_intercept": n.TLS.BlockQUIC,
			"intercept_ca":            object{"cert_path": orNil(n.TLS.CACert), "key_path": orNil(n.TLS.CAKey)},
		}
	}
	if n.MaxConnections > 0 {
		fields["max_connections"] = n.MaxConnections
	}
	if n.TrustHostCAs {
		fields["trust_host_cas"] = true
	}
}

func orNil(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// SecretInjection is the parts of a request in which a placeholder is replaced.
type SecretInjection struct{ Headers, BasicAuth, QueryParams, Body bool }

// SecretEnvOptions are the options of Secret.Env. At least one host is needed.
type SecretEnvOptions struct {
	AllowHosts, AllowHostPatterns []string
	Placeholder                   string
	NoRequireTLS                  bool
	OnViolation                   string
	// Injection is headers and Basic credentials if it is nil.
	Injection *SecretInjection
}

// SecretEntry is a secret: the guest sees a placeholder, and allowed hosts get the value.
type SecretEntry struct {
	EnvVar, value string
	options       SecretEnvOptions
}

// Secret makes secrets.
var Secret secrets

type secrets struct{}

// Env returns a secret whose placeholder is in an environment variable.
func (secrets) Env(name, value string, options SecretEnvOptions) SecretEntry {
	return SecretEntry{name, value, options}
}

func (s SecretEntry) json() (object, error) {
	hosts := []object{}
	for _, name := range s.options.AllowHosts {
		hosts = append(hosts, object{"exact": name})
	}
	for _, pattern := range s.options.AllowHostPatterns {
		hosts = append(hosts, object{"wildcard": pattern})
	}
	if len(hosts) == 0 {
		return nil, invalid("a secret needs at least one host")
	}
	injection := SecretInjection{Headers: true, BasicAuth: true}
	if s.options.Injection != nil {
		injection = *s.options.Injection
	}
	return object{
		"env_var": s.EnvVar, "value": s.value, "placeholder": orNil(s.options.Placeholder),
		"allowed_hosts": hosts, "require_tls_identity": !s.options.NoRequireTLS,
		"on_violation": orNil(s.options.OnViolation),
		"injection": object{
			"headers": injection.Headers, "basic_auth": injection.BasicAuth,
			"query_params": injection.QueryParams, "body": injection.Body,
		},
	}, nil
}
