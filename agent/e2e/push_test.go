package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apache/cloudstack-go/v2/cloudstack"
	"github.com/google/go-cmp/cmp"

	"vragent/agent/internal/api"
	"vragent/netcfg/nstest"
)

// certificate makes a certificate for an address, and returns its files and whom to trust for it.
func certificate(t *testing.T, address string) (cert, key string, trust *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(address)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key, trust = dir+"/cert.pem", dir+"/key.pem", x509.NewCertPool()
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	trust.AppendCertsFromPEM(certPEM)
	for file, content := range map[string][]byte{cert: certPEM, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key, trust
}

// files returns all that lies in the drop directory, by path.
func (r *router) files(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(r.drop, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, r.drop+"/")] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestPushFromAManagementServer takes the way of a management server that does not use SSH: keys made
// on the router, signed calls over TLS, and guests that boot.
func TestPushFromAManagementServer(t *testing.T) {
	t.Parallel()
	if !nstest.Enter(t) {
		return
	}
	need(t, "udhcpc", "curl")
	r := newRouter(t)
	a, b := r.guest(t, "a", "va", macA), r.guest(t, "b", "vb", macB)
	r.Bridge(t, "eth0", "va", "vb")
	r.AddAddr(t, "eth0", "10.1.1.1/24")
	manager := nstest.NewHost(t, "manager")
	nstest.Pair(t, r.Host, "eth1", manager, "eth0")
	r.AddAddr(t, "eth1", "192.0.2.1/24")
	manager.AddAddr(t, "eth0", "192.0.2.9/24")
	cert, key, trust := certificate(t, "192.0.2.1")
	if err := os.Mkdir(r.dir+"/agent.d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.dir+"/agent.d/api.yaml", []byte("api: {listen: \"192.0.2.1:8443\", tls: {cert: "+cert+", key: "+key+"}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start(t)

	// The first administrator is made on the router itself.
	local := overSocket(r.dir + "/api.sock")
	defer local.CloseIdleConnections()
	res, err := local.Post("http://vragent/v1/users", "application/json", strings.NewReader(`{"name": "root", "role": "admin"}`))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	var keys api.Keys
	if err := errors.Join(err, json.Unmarshal(body, &keys)); err != nil || keys.APIKey == "" || keys.SecretKey == "" {
		t.Fatalf("POST /v1/users: %s: %s, %v", res.Status, body, err)
	}
	remote := func() *http.Client {
		return &http.Client{Timeout: waitTime, Transport: &http.Transport{
			DisableKeepAlives: true, // with connections to keep it may still be dialing when the test ends
			TLSClientConfig:   &tls.Config{RootCAs: trust},
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				return manager.Dial(ctx, nil, network, addr)
			},
		}}
	}
	const url = "https://192.0.2.1:8443" + api.Path
	cs := cloudstack.NewAsyncClient(url, keys.APIKey, keys.SecretKey, true, cloudstack.WithHTTPClient(remote()))

	// push calls a command that is a job and waits until that has ended. It returns why it failed.
	push := func(command string, params ...string) (failure string) {
		t.Helper()
		p := &cloudstack.CustomServiceParams{}
		for i := 0; i < len(params); i += 2 {
			p.SetParam(params[i], params[i+1])
		}
		var answer struct{ JobID string }
		if err := cs.Custom.(*cloudstack.CustomService).CustomPostRequest(command, p, &answer); err != nil || answer.JobID == "" {
			t.Fatalf("%s: job %q, %v", command, answer.JobID, err)
		}
		nstest.Poll(t, waitTime, command+" to end", func() bool {
			job, err := cs.Asyncjob.QueryAsyncJobResult(cs.Asyncjob.NewQueryAsyncJobResultParams(answer.JobID))
			if err != nil {
				t.Fatalf("queryAsyncJobResult: %v", err)
			}
			if job.Jobstatus == 2 {
				failure = string(job.Jobresult)
			}
			return job.Jobstatus != 0
		})
		return failure
	}
	pushVM := func(name, mac, ip, userData string) string {
		t.Helper()
		return push("pushVirtualMachine", "id", name, "hostname", name, "nics[0].network", "guest-1", "nics[0].macaddress", mac,
			"nics[0].ipaddress", ip, "userdata", base64.StdEncoding.EncodeToString([]byte(userData)), "password", "of-"+name)
	}

	if why := push("pushNetwork", "id", "guest-1", "definition", network); why != "" {
		t.Fatalf("pushNetwork: %s", why)
	}
	// Once its job is done a guest is served, at once.
	if why := pushVM("a", macA, "10.1.1.34", "data of a"); why != "" {
		t.Fatalf("pushVirtualMachine: %s", why)
	}
	lease(t, a, "10.1.1.34")
	if got, err := curl(t, a, dataURL); err != nil || got != "data of a" {
		t.Errorf("user data = %q, %v", got, err)
	}
	if got, err := a.Output(t, "curl", "-sSf", "--max-time", "5", "-H", "DomU_Request: send_my_password", "http://10.1.1.1:8080/"); err != nil || got != "of-a" {
		t.Errorf("password = %q, %v", got, err)
	}
	if why := pushVM("b", macB, "10.1.1.35", "data of b"); why != "" {
		t.Fatalf("pushVirtualMachine: %s", why)
	}
	lease(t, b, "10.1.1.35")

	// What would conflict, or is invalid, leaves the files as they were, of a VM that is there and of
	// one that is not.
	before := r.files(t)
	for name, test := range map[string]struct{ vm, mac, ip, want string }{
		"address of another, VM there": {"b", macB, "10.1.1.34", "10.1.1.34 in network guest-1 belongs to vms/a"},
		"address of another, new VM":   {"c", "02:00:4c:5f:00:0c", "10.1.1.34", "10.1.1.34 in network guest-1 belongs to vms/a"},
		"MAC of another, new VM":       {"c", macA, "10.1.1.36", macA + " in network guest-1 belongs to vms/a"},
		"outside the network, new VM":  {"c", "02:00:4c:5f:00:0c", "10.1.2.36", "10.1.2.36 is outside 10.1.1.0/24"},
	} {
		if why := pushVM(test.vm, test.mac, test.ip, "never"); !strings.Contains(why, test.want) {
			t.Errorf("%s: %q, want %q in it", name, why, test.want)
		}
		if diff := cmp.Diff(before, r.files(t)); diff != "" {
			t.Errorf("%s: the files changed (-before +after)\n%s", name, diff)
		}
	}
	r.applied(t)
	if got, err := curl(t, b, dataURL); err != nil || got != "data of b" {
		t.Errorf("user data of b after pushes that failed = %q, %v", got, err)
	}

	// A guest does not reach the API by the router's other address either: it is cut off before a word
	// of TLS, while the manager is answered.
	a.AddRoute(t, "192.0.2.0/24", "10.1.1.1")
	conn, err := a.Dial(t.Context(), &net.Dialer{Timeout: waitTime}, "tcp", "192.0.2.1:8443")
	if err == nil {
		conn.SetDeadline(time.Now().Add(waitTime))
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a guest's connection to the API: %v, want it reset", err)
	}
	if conn, err := a.Dial(t.Context(), &net.Dialer{Timeout: waitTime}, "tcp", "10.1.1.1:8443"); err == nil {
		conn.Close()
		t.Error("the API listens on the guests' gateway")
	}
	if got := get(t, remote(), "https://192.0.2.1:8443/readyz"); got != "ok\n" {
		t.Errorf("readyz = %q", got)
	}

	// Without a good signature there is nothing to be had.
	wrong := cloudstack.NewAsyncClient(url, keys.APIKey, "wrong", true, cloudstack.WithHTTPClient(remote()))
	if _, err := wrong.VirtualMachine.ListVirtualMachines(wrong.VirtualMachine.NewListVirtualMachinesParams()); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a wrong secret: %v", err)
	}
	if why := push("removeVirtualMachine", "id", "a"); why != "" {
		t.Errorf("removeVirtualMachine: %s", why)
	}
	if _, err := curl(t, a, dataURL); err == nil {
		t.Error("a removed VM is still served")
	}
	if strings.Contains(r.log.String(), keys.SecretKey) || strings.Contains(r.log.String(), "of-a") {
		t.Error("the log holds a secret")
	}
}
