package api_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apache/cloudstack-go/v2/cloudstack"

	"vragent/agent/internal/account"
	"vragent/agent/internal/api/wire"
)

// needs skips a test where a program or Python module is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if module, ok := strings.CutPrefix(program, "python3:"); ok {
			if exec.Command("/usr/bin/python3", "-c", "import "+module).Run() != nil {
				t.Skipf("needs the Python module %s", module)
			}
		} else if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s", program)
		}
	}
}

// run runs a program that must succeed and returns what it prints.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errors.Bytes())
	}
	return string(out)
}

func TestCloudstackGo(t *testing.T) {
	l := newLab(t, labOptions{})
	root := l.user("root", account.Admin)
	l.router.drop("vms/web", "vm.yaml", vmFile("10.1.1.5"))
	cs := cloudstack.NewAsyncClient(l.url, root.APIKey, root.SecretKey, false)

	apis, err := cs.APIDiscovery.ListApis(cs.APIDiscovery.NewListApisParams())
	if err != nil || apis.Count < 30 || len(apis.Apis) != apis.Count {
		t.Errorf("ListApis() = %+v, %v", apis, err)
	}
	created, err := cs.User.CreateUser(cs.User.NewCreateUserParams("operator", "b+c@example.org", "Bob ~*", "Müller", "p@ss & word", "bob"))
	if err != nil || created.Username != "bob" || created.Firstname != "Bob ~*" || created.Account != "operator" {
		t.Fatalf("CreateUser() = %+v, %v", created, err)
	}
	if _, _, err := l.users.Login(t.Context(), "bob", "p@ss & word"); err != nil {
		t.Errorf("Login() = %v", err)
	}
	list := cs.User.NewListUsersParams()
	list.SetKeyword("Bob ~")
	if users, err := cs.User.ListUsers(list); err != nil || users.Count != 1 || users.Users[0].Id != created.Id {
		t.Errorf("ListUsers() = %+v, %v", users, err)
	}
	list.SetKeyword("nobody")
	if users, err := cs.User.ListUsers(list); err != nil || users.Count != 0 {
		t.Errorf("ListUsers(nobody) = %+v, %v", users, err)
	}
	keys, err := cs.User.RegisterUserKeys(cs.User.NewRegisterUserKeysParams(created.Id))
	if err != nil || keys.Apikey == "" || keys.Secretkey == "" {
		t.Errorf("RegisterUserKeys() = %+v, %v", keys, err)
	}
	if got, err := cs.User.GetUserKeys(cs.User.NewGetUserKeysParams(created.Id)); err != nil || got.Secretkey != keys.Secretkey {
		t.Errorf("GetUserKeys() = %+v, %v", got, err)
	}
	if got, err := cs.User.DisableUser(cs.User.NewDisableUserParams(created.Id)); err != nil || got.State != "disabled" {
		t.Errorf("DisableUser() = %+v, %v", got, err)
	}
	if got, err := cs.User.EnableUser(cs.User.NewEnableUserParams(created.Id)); err != nil || got.State != "enabled" {
		t.Errorf("EnableUser() = %+v, %v", got, err)
	}
	if got, err := cs.User.LockUser(cs.User.NewLockUserParams(created.Id)); err != nil || got.State != "locked" {
		t.Errorf("LockUser() = %+v, %v", got, err)
	}
	update := cs.User.NewUpdateUserParams(created.Id)
	update.SetEmail("new@example.org")
	if _, err := cs.User.UpdateUser(update); err != nil {
		t.Errorf("UpdateUser() = %v", err)
	}
	if got, err := cs.User.DeleteUser(cs.User.NewDeleteUserParams(created.Id)); err != nil || !got.Success {
		t.Errorf("DeleteUser() = %+v, %v", got, err)
	}
	if _, err := cs.User.DeleteUser(cs.User.NewDeleteUserParams(created.Id)); err == nil || !strings.Contains(err.Error(), "CloudStack API error 431 (CSExceptionErrorCode: 4350)") {
		t.Errorf("DeleteUser() again = %v", err)
	}

	vms, err := cs.VirtualMachine.ListVirtualMachines(cs.VirtualMachine.NewListVirtualMachinesParams())
	if err != nil || vms.Count != 1 || vms.VirtualMachines[0].State != "applied" || vms.VirtualMachines[0].Nic[0].Ipaddress != "10.1.1.5" {
		t.Errorf("ListVirtualMachines() = %+v, %v", vms, err)
	}
	change := cs.VirtualMachine.NewUpdateVirtualMachineParams("web")
	change.SetUserdata("aGVsbG8=")
	change.SetDetails(map[string]string{"rack": "r1"})
	if _, err := cs.VirtualMachine.UpdateVirtualMachine(change); err != nil {
		t.Errorf("UpdateVirtualMachine() = %v", err)
	}
	if l.router.text("vms/web", "user-data") != "hello" || l.router.text("vms/web", "meta-data.yaml") != "rack: r1\n" {
		t.Errorf("user data %q, metadata %q", l.router.text("vms/web", "user-data"), l.router.text("vms/web", "meta-data.yaml"))
	}
	if got, err := cs.User.GetVirtualMachineUserData(cs.User.NewGetVirtualMachineUserDataParams("web")); err != nil || got.Userdata != "aGVsbG8=" {
		t.Errorf("GetVirtualMachineUserData() = %+v, %v", got, err)
	}
	reset, err := cs.VirtualMachine.ResetPasswordForVirtualMachine(cs.VirtualMachine.NewResetPasswordForVirtualMachineParams("web"))
	if err != nil || reset.Password == "" || l.router.text("vms/web", "password") != reset.Password+"\n" {
		t.Errorf("ResetPasswordForVirtualMachine() = %+v, %v", reset, err)
	}
	if networks, err := cs.Network.ListNetworks(cs.Network.NewListNetworksParams()); err != nil || networks.Count != 1 || networks.Networks[0].Netmask != "255.255.255.0" {
		t.Errorf("ListNetworks() = %+v, %v", networks, err)
	}
	if routers, err := cs.Router.ListRouters(cs.Router.NewListRoutersParams()); err != nil || routers.Count != 1 || routers.Routers[0].State != "applied" {
		t.Errorf("ListRouters() = %+v, %v", routers, err)
	}
	if jobs, err := cs.Asyncjob.ListAsyncJobs(cs.Asyncjob.NewListAsyncJobsParams()); err != nil || jobs.Count < 2 {
		t.Errorf("ListAsyncJobs() = %+v, %v", jobs, err)
	}
	wrong := cloudstack.NewAsyncClient(l.url, root.APIKey, "wrong", false)
	if _, err := wrong.APIDiscovery.ListApis(cs.APIDiscovery.NewListApisParams()); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("with a wrong secret: %v", err)
	}
}

// TestPythonCS runs Debian's cs, which signs with version 3 and expires.
func TestPythonCS(t *testing.T) {
	needs(t, "python3:cs")
	l := newLab(t, labOptions{})
	root := l.user("root", account.Admin)
	env := []string{"CLOUDSTACK_ENDPOINT=" + l.url, "CLOUDSTACK_KEY=" + root.APIKey, "CLOUDSTACK_SECRET=" + root.SecretKey}
	cs := func(args ...string) string {
		t.Helper()
		return run(t, env, "/usr/bin/python3", append([]string{"-m", "cs"}, args...)...)
	}
	if out := cs("listUsers", "username=root"); !strings.Contains(out, root.ID) {
		t.Errorf("listUsers: %s", out)
	}
	if out := cs("--post", "createUser", "account=viewer", "username=eve", "password=a b+c*d~e&f", "email=e@x", "firstname=E", "lastname=Ø"); !strings.Contains(out, `"username": "eve"`) {
		t.Errorf("createUser: %s", out)
	}
	if _, _, err := l.users.Login(t.Context(), "eve", "a b+c*d~e&f"); err != nil {
		t.Errorf("Login() = %v", err)
	}
	for _, post := range []string{"", "--post"} {
		args := []string{"pushVirtualMachine", "id=web", "nics[0].network=guest-1", "nics[0].ipaddress=10.1.1.7", "metadata[0].key=note", "metadata[0].value=[x]~*" + post, "userdata=aGVsbG8="}
		if post != "" {
			args = append([]string{post}, args...)
		}
		if out := cs(args...); !strings.Contains(out, `"state": "applied"`) { // it waits for the job
			t.Errorf("pushVirtualMachine: %s", out)
		}
		if got := l.router.text("vms/web", "meta-data.yaml"); got != "note: \"[x]~*"+post+"\"\n" {
			t.Errorf("metadata %q", got)
		}
	}
	// Its exit status differs by version; what it says does not.
	out, err := exec.Command("env", append(env, "/usr/bin/python3", "-m", "cs", "removeVirtualMachine", "id=nobody")...).CombinedOutput()
	if !strings.Contains(string(out), `"errorcode": 431`) {
		t.Errorf("removeVirtualMachine of nobody: %v\n%s", err, out)
	}
}

// TestLibcloud runs Debian's libcloud, which sorts and spells otherwise.
func TestLibcloud(t *testing.T) {
	needs(t, "python3:libcloud")
	l := newLab(t, labOptions{})
	root := l.user("root", account.Admin)
	host, port, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(l.url, "http://"), "/client/api"), ":")
	out := run(t, nil, "/usr/bin/python3", "-W", "ignore", "-c", `
import sys, json
from libcloud.compute.types import Provider
from libcloud.compute.providers import get_driver
key, secret, host, port = sys.argv[1:5]
d = get_driver(Provider.CLOUDSTACK)(key=key, secret=secret, secure=False, host=host, port=int(port), path='/client/api')
vm = d._async_request(command='pushVirtualMachine', params={'id': 'web', 'nics[0].network': 'guest-1', 'nics[0].ipaddress': '10.1.1.7', 'metadata[0].key': 'Note', 'metadata[0].value': 'a ~ [b] * c'}, method='GET')
print(json.dumps([vm, d._sync_request(command='listVirtualMachines', params={'keyword': 'we~b'}), d._sync_request(command='listVirtualMachines', params={'id': 'web'})]))
`, root.APIKey, root.SecretKey, host, port)
	var got []map[string]any
	if err := json.Unmarshal([]byte(out), &got); err != nil || len(got) != 3 || len(got[1]) != 0 || got[2]["count"] != float64(1) {
		t.Errorf("libcloud: %s (%v)", out, err)
	}
	if got := l.router.text("vms/web", "meta-data.yaml"); got != "Note: a ~ [b] * c\n" {
		t.Errorf("metadata %q", got)
	}
}

// TestCurl signs by hand, with openssl, in both versions and formats.
func TestCurl(t *testing.T) {
	needs(t, "curl", "openssl")
	l := newLab(t, labOptions{})
	root := l.user("root", account.Admin)
	sign := func(query string) string {
		t.Helper()
		cmd := exec.Command("openssl", "dgst", "-sha1", "-hmac", root.SecretKey, "-binary")
		cmd.Stdin = strings.NewReader(strings.ToLower(query))
		raw, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		encode := exec.Command("openssl", "base64", "-A")
		encode.Stdin = bytes.NewReader(raw)
		out, err := encode.Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	v3 := "&expires=" + strings.NewReplacer(":", "%3A", "+", "%2B").Replace(wire.Date(time.Now().Add(time.Minute)))
	for _, tt := range []struct{ name, query, want string }{
		{"version 1, JSON", "apiKey=" + root.APIKey + "&command=listUsers&response=json", `{"listusersresponse":{"count":1,"user":[{"id":"` + root.ID},
		{"version 1, XML", "apiKey=" + root.APIKey + "&command=listUsers", `<listusersresponse cloud-stack-version="4.20.0.0"><count>1</count><user><id>` + root.ID},
		{"version 3, JSON", "apiKey=" + root.APIKey + "&command=listUsers" + v3 + "&response=json&signatureVersion=3", `{"listusersresponse":{"count":1`},
		{"version 3, XML", "apiKey=" + root.APIKey + "&command=listUsers" + v3 + "&response=xml&signatureVersion=3", `<listusersresponse`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signature := sign(tt.query)
			// --globoff: names of parameters may have brackets.
			if out := run(t, nil, "curl", "-sS", "--globoff", "-G", l.url+"?"+tt.query, "--data-urlencode", "signature="+signature); !strings.Contains(out, tt.want) {
				t.Errorf("GET: %s", out)
			}
			if out := run(t, nil, "curl", "-sS", l.url, "-d", tt.query, "--data-urlencode", "signature="+signature); !strings.Contains(out, tt.want) {
				t.Errorf("POST: %s", out)
			}
		})
	}
	t.Run("bundle", func(t *testing.T) {
		archive := tarOf(t, "vms/web/vm.yaml", vmFile("10.1.1.7"))
		file := filepath.Join(t.TempDir(), "bundle.tar")
		if err := os.WriteFile(file, archive, 0o600); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(archive)
		query := "apiKey=" + root.APIKey + "&command=pushBundle" + v3 + "&response=json&sha256=" + hex.EncodeToString(sum[:]) + "&signatureVersion=3"
		signature := strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(sign(query))
		// curl calls any body a form unless it is told otherwise; that must not matter.
		out := run(t, nil, "curl", "-sS", "--data-binary", "@"+file, l.url+"?"+query+"&signature="+signature)
		var answer map[string]map[string]string
		if err := json.Unmarshal([]byte(out), &answer); err != nil || answer["pushbundleresponse"]["jobid"] == "" {
			t.Fatalf("answer %s (%v)", out, err)
		}
		eventually(t, func() string {
			if got := l.router.text("vms/web", "vm.yaml"); got != vmFile("10.1.1.7") {
				return "vm.yaml is " + got
			}
			return ""
		})
	})
}
