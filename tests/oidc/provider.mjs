// The OpenID provider of the tests of signing in: oidc-provider, as it comes, with its own pages for signing in and consent.
// provider.mjs SETTINGS: a JSON file with where to listen, its certificate, the clients, and the file with who there is.
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

import Provider from 'oidc-provider';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf8'));

// Read each time: a test moves somebody to another group while the provider runs.
const accounts = () => JSON.parse(readFileSync(settings.accounts, 'utf8'));

// New ones with each start, which is how a test has them exchanged.
const keys = [
  { ...generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256' },
  { ...generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'ES256' },
];

const provider = new Provider(settings.issuer, {
  clients: settings.clients,
  jwks: { keys },
  scopes: ['openid', 'profile', 'email', 'groups'],
  claims: {
    openid: ['sub'],
    profile: ['name', 'preferred_username'],
    email: ['email', 'email_verified'],
    groups: ['groups'],
  },
  // Claims are in the ID token, which is all that a command line has.
  conformIdTokenClaims: false,
  findAccount: (_context, id) => {
    const account = accounts()[id];
    return account && { accountId: id, claims: () => ({ sub: id, ...account }) };
  },
  pkce: { required: () => true },
  features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true } },
  cookies: { keys: ['of the tests'] },
  ttl: { IdToken: settings.id_token_seconds, AccessToken: 600, Grant: 600, Interaction: 600, Session: 600, DeviceCode: 600 },
});

const tls = { key: readFileSync(settings.key), cert: readFileSync(settings.certificate), minVersion: 'TLSv1.3' };
createServer(tls, provider.callback()).listen(settings.port, '127.0.0.1', () => console.log('ready'));
