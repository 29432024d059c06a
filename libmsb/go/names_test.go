package microsandbox

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

func fixture(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile("../sdk-fixtures/" + name)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// declared returns every exported name of the package, with members behind a dot.
func declared(t *testing.T) map[string]bool {
	packages, err := parser.ParseDir(token.NewFileSet(), ".", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found, spaces := map[string]bool{}, map[string]string{}
	for name, file := range packages["microsandbox"].Files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, declaration := range file.Decls {
			switch declaration := declaration.(type) {
			case *ast.FuncDecl:
				name := declaration.Name.Name
				if declaration.Recv != nil {
					kind := declaration.Recv.List[0].Type
					if pointer, ok := kind.(*ast.StarExpr); ok {
						kind = pointer.X
					}
					name = kind.(*ast.Ident).Name + "." + name
				}
				found[name] = true
			case *ast.GenDecl:
				for _, spec := range declaration.Specs {
					addSpec(spec, found, spaces)
				}
			}
		}
	}
	for name := range found {
		for space, kind := range spaces {
			if strings.HasPrefix(name, kind+".") {
				found[space+strings.TrimPrefix(name, kind)] = true
			}
		}
	}
	return found
}

func addSpec(spec ast.Spec, found map[string]bool, spaces map[string]string) {
	switch spec := spec.(type) {
	case *ast.ValueSpec:
		for _, name := range spec.Names {
			found[name.Name] = true
			if kind, ok := spec.Type.(*ast.Ident); ok {
				spaces[name.Name] = kind.Name
			}
		}
	case *ast.TypeSpec:
		if fields, ok := spec.Type.(*ast.StructType); ok {
			for _, field := range fields.Fields.List {
				for _, name := range field.Names {
					found[spec.Name.Name+"."+name.Name] = true
				}
			}
		}
	}
}

func TestEveryNameIsThereAndTheVerdictsAreCounted(t *testing.T) {
	var names struct {
		Functions, Constants, Refused []string
		Members                       map[string][]string
		Differs                       map[string]string
	}
	fixture(t, "names-go.json", &names)
	every := map[string]bool{}
	for _, name := range append(names.Functions, names.Constants...) {
		every[name] = true
	}
	for owner, members := range names.Members {
		for _, member := range members {
			every[owner+"."+member] = true
		}
	}
	there := declared(t)
	missing := 0
	for name := range every {
		if !there[name] {
			missing++
			t.Errorf("%s is missing", name)
		}
	}
	for name := range names.Differs {
		if !every[name] {
			t.Errorf("the verdict of %s names nothing", name)
		}
	}
	for _, name := range names.Refused {
		if !every[name] || names.Differs[name] != "" {
			t.Errorf("the refusal of %s names nothing", name)
		}
	}
	works := len(every) - len(names.Differs) - len(names.Refused) - missing
	t.Logf("names: %d members: %d work, %d differ, %d are refused, %d are missing",
		len(every), works, len(names.Differs), len(names.Refused), missing)
}

func TestOptionsWriteTheFormOfAStoredConfiguration(t *testing.T) {
	config := &sandboxConfig{fields: object{"cpus": 1, "memory_mib": 512}}
	for _, option := range []SandboxOption{
		WithImage("python"), WithOCIUpperSize(64), WithEnv(map[string]string{"A": "b"}),
		WithEnv(map[string]string{"C": "d"}), WithMaxDuration(1500_000_000), WithReplace(),
		WithPorts(map[uint16]uint16{8080: 80}),
		WithNetwork(&NetworkConfig{
			DenyDomains: []string{"a.b"}, DefaultEgress: "deny",
			Rules: []PolicyRule{{Action: "allow", Destination: "10.1.2.3/8", Port: "80,8000-8010"}},
		}),
	} {
		option(config)
	}
	args, err := config.build("n")
	if err != nil {
		t.Fatal(err)
	}
	expected := "create --name=n --from-microsandbox=- --max-duration=1500ms --entrypoint= --replace"
	if got := strings.Join(args, " "); got != expected {
		t.Error(got)
	}
	if env := config.fields["env"].([][2]string); len(env) != 2 {
		t.Error(env)
	}
	json, _ := json.Marshal(config.fields["network"].(object)["policy"])
	if got := string(json); got != `{"default_egress":"deny","default_ingress":"allow","rules":[`+
		`{"action":"deny","destination":{"domain":"a.b"},"direction":"egress","ports":[],"protocols":[]},`+
		`{"action":"allow","destination":{"cidr":"10.0.0.0/8"},"direction":"egress",`+
		`"ports":[{"end":80,"start":80},{"end":8010,"start":8000}],"protocols":[]}]}` {
		t.Error(got)
	}
	oci := config.fields["image"].(object)["Oci"].(object)
	if oci["upper_size_mib"] != uint32(64) {
		t.Error(oci)
	}
}

func TestWrongArgumentsAreErrorsBeforeAnythingRuns(t *testing.T) {
	image := WithImage("x")
	for _, wrong := range []struct {
		kind    ErrorKind
		name    string
		options []SandboxOption
	}{
		{ErrInvalidArgument, "n", nil},
		{ErrInvalidArgument, "n", []SandboxOption{image, WithSnapshot("s")}},
		{ErrInvalidArgument, "n", []SandboxOption{image, WithMaxDuration(-1)}},
		{ErrInvalidArgument, "n", []SandboxOption{image, WithPullPolicy("daily")}},
		{ErrInvalidArgument, "n", []SandboxOption{image, WithPorts(map[uint16]uint16{0: 80})}},
		{ErrInvalidConfig, strings.Repeat("x", 129), []SandboxOption{image}},
		{ErrInvalidArgument, "n", []SandboxOption{
			image, WithSecrets(Secret.Env("A", "v", SecretEnvOptions{})),
		}},
		{ErrNetworkPolicy, "n", []SandboxOption{
			image, WithNetwork(&NetworkConfig{Rules: []PolicyRule{{Action: "maybe"}}}),
		}},
		{ErrNetworkPolicy, "n", []SandboxOption{
			image, WithNetwork(&NetworkConfig{Rules: []PolicyRule{{Action: "deny", Port: "9-8"}}}),
		}},
	} {
		config := &sandboxConfig{fields: object{}}
		for _, option := range wrong.options {
			option(config)
		}
		if _, err := config.build(wrong.name); !IsKind(err, wrong.kind) {
			t.Errorf("%v in place of %v", err, wrong.kind)
		}
	}
}
